"""A folder with one subfolder of pictures per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from excise.data.decode import Encoded
from excise.data.listing import Listing, Splits, expanded, paired
from excise.errors import DataError

__all__ = ["SUFFIXES", "folder", "pictures_in"]

#: Files with other suffixes are not looked at.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
)
_TEST_NAMES = ("test", "val", "valid", "validation")


def folder(where: str | Path) -> Splits:
    """List the pictures of a folder tree.

    ``DIR/cat/1.png`` is a picture of class ``cat``; deeper folders belong to the class above.
    Classes are ordered by name, as text. If ``DIR/train`` holds such a tree, it is the training
    split and ``DIR/test`` (or ``val``) the test split.

    Raises:
        DataError: no such folder, no class folders in it, or a class folder without pictures.
    """
    where = expanded(where)
    if not where.is_dir():
        raise DataError(
            "a folder with one subfolder per class", got=f"{str(where)!r}", remedy="Check the path."
        )
    if not (where / "train").is_dir() or not _subfolders(where / "train"):
        return Splits(_listing(where))
    train = _listing(where / "train")
    for name in _TEST_NAMES:
        if (where / name).is_dir():
            return paired(train, _listing(where / name))
    return Splits(train)


def _listing(where: Path) -> Listing:
    subfolders = _subfolders(where)
    if not subfolders:
        loose = len(pictures_in(where))
        raise DataError(
            f"one subfolder per class in {str(where)!r}",
            got=f"{loose} pictures directly in it" if loose else "no subfolders",
            remedy="Put the pictures of each class into a folder named after the class.",
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, subfolder in enumerate(subfolders):
        found = pictures_in(subfolder)
        if not found:
            raise DataError(
                f"pictures in every class folder of {str(where)!r}",
                got=f"none in {subfolder.name!r}",
                remedy="Add some or remove the folder. Known suffixes: "
                f"{', '.join(sorted(SUFFIXES))}.",
            )
        files += found
        labels += [label] * len(found)

    def pictures(index: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        for position in index:
            yield str(files[position].relative_to(where)), files[position]

    return Listing(torch.tensor(labels), tuple(f.name for f in subfolders), pictures)


def _subfolders(where: Path) -> list[Path]:
    """Return the class folders, sorted by name; hidden ones and archive leftovers are none."""
    return sorted(
        (p for p in where.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))),
        key=lambda p: p.name,
    )


def pictures_in(where: Path) -> list[Path]:
    """Return the pictures in a folder, at any depth, sorted; hidden files are none."""
    return sorted(
        p
        for p in where.rglob("*")
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
