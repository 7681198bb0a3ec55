"""Pictures as they lie in a folder, without labels, flat or in subfolders."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from excise.data.decode import Channels, Size, SkippedPicturesWarning, decode
from excise.data.folder import SUFFIXES, pictures_in
from excise.data.listing import expanded
from excise.errors import DataError

__all__ = ["Pictures", "read_folder"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures without labels.

    Args:
        images: ``(n, c, h, w)`` uint8.
        names: of each, its path within the folder.
        unreadable: the names of the files that could not be read, in order.
    """

    images: UInt8[Tensor, "n c h w"]
    names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()


def read_folder(
    where: str | Path, *, size: Size | None = None, channels: Channels | None = None
) -> Pictures:
    """Read every picture of a folder, at any depth, sorted by path. Damaged ones are left out.

    Args:
        where: the folder. Hidden files, and files with other suffixes, are not looked at.
        size: height and width to resize to; None: all pictures must have one size.
        channels: 1 for gray, 3 for color; None: 1 if every picture is gray, else 3.

    Raises:
        DataError: no such folder, no picture in it, none that can be read, or sizes that differ.
    """
    where = expanded(where)
    if not where.is_dir():
        raise DataError("a folder of pictures", got=f"{str(where)!r}", remedy="Check the path.")
    files = pictures_in(where)
    if not files:
        raise DataError(
            f"pictures in {str(where)!r} or its subfolders",
            got="none",
            remedy=f"Known suffixes: {', '.join(sorted(SUFFIXES))}.",
        )
    names = [str(file.relative_to(where)) for file in files]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images, kept = decode(
            zip(names, files, strict=True),
            len(files),
            size=size,
            channels=channels,
            skip_unreadable=True,
        )
    unreadable: tuple[str, ...] = ()
    for entry in caught:
        if isinstance(entry.message, SkippedPicturesWarning):
            unreadable = entry.message.skipped
        else:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
    return Pictures(images, tuple(names[position] for position in kept), unreadable)
