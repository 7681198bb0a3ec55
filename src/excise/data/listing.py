"""What every source of images gives: the labels at once, the pictures when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from excise.data.classes import ClassMap, Names, class_map
from excise.data.decode import Channels, Encoded, Size, decode
from excise.errors import DataError
from excise.types import LabelledImages

__all__ = ["Listing", "Reading", "Splits", "Undecoded", "expanded", "paired", "spread"]


@dataclass(frozen=True)
class Reading:
    """How pictures are to be read; see :func:`excise.data.load_data` for the fields."""

    size: Size | None = None
    channels: Channels | None = None
    limit: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True, eq=False)
class Listing:
    """One split of a source, before its pictures are decoded.

    Args:
        labels: ``(n,)`` int64, the class of each picture.
        classes: the name of each class.
        pictures: yields the name and encoded picture of each of the given positions, which ascend.
        named: False where the source has no names of its own and ``classes`` are numbers.
        mirror: see :class:`~excise.types.LabelledImages`.
    """

    labels: Tensor
    classes: tuple[str, ...]
    pictures: Callable[[Sequence[int]], Iterator[tuple[str, Encoded]]]
    named: bool = True
    mirror: bool = False

    def __post_init__(self) -> None:
        """Refuse labels that no class name belongs to."""
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes)",
                got=f"labels from {low} to {high}",
                remedy="Correct the labels or the class names stored with them.",
            )

    def mapped(self, given: Names | None) -> Listing:
        """Return the same pictures, labeled by the class map the caller gave, if any."""
        if given is None:
            return self
        mapping: ClassMap = class_map(self.classes if self.named else None, given)
        output = torch.tensor(mapping.outputs or range(len(mapping.classes)))
        if int(self.labels.max()) >= len(output):
            raise DataError(
                f"a name for each of {int(self.labels.max()) + 1} classes",
                got=f"{len(mapping.classes)} names",
                remedy="Name every output of the network, in order.",
            )
        return replace(self, labels=output[self.labels], classes=mapping.classes, named=True)

    def read(self, reading: Reading) -> Undecoded:
        """Return the pictures as they are to be read, none of them decoded yet."""
        return Undecoded(self, reading, spread(self.labels, reading.limit))

    def load(self, reading: Reading) -> LabelledImages:
        """Decode the pictures."""
        return self.read(reading).load()


@dataclass(frozen=True, eq=False)
class Undecoded:
    """Labeled pictures none of which is decoded yet: few are drawn from many before any is read.

    Args:
        listing: of the whole split.
        reading: how they are to be decoded.
        index: ``(n,)`` positions in the listing.
    """

    listing: Listing
    reading: Reading
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        """The class of each picture, ``(n,)`` int64."""
        return self.listing.labels[self.index]

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.listing.classes

    def counts(self) -> list[int]:
        """Return how many pictures each class has."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def subset(self, index: Tensor) -> Undecoded:
        """Return the pictures at ``index`` (integers or a mask), in that order."""
        return replace(self, index=self.index[index])

    def load(self) -> LabelledImages:
        """Decode the pictures.

        Raises:
            DataError: damaged pictures, or such as do not fit together.
        """
        # Every picture is read once and in the source's order, which is how a table is read.
        positions, where = self.index.unique(return_inverse=True)
        images, kept = decode(
            self.listing.pictures(positions.tolist()),
            len(positions),
            size=self.reading.size,
            channels=self.reading.channels,
            skip_unreadable=self.reading.skip_unreadable,
        )
        row = torch.full_like(positions, -1)
        row[kept] = torch.arange(len(kept))
        rows = row[where]
        was_read = rows >= 0
        if not torch.equal(rows[was_read], torch.arange(len(kept))):
            images = images[rows[was_read]]
        labels = self.labels[was_read]
        return LabelledImages(images, labels, self.classes, self.listing.mirror)


@dataclass(frozen=True, eq=False)
class Splits:
    """The two parts of a source; ``test`` is None where it has none."""

    train: Listing
    test: Listing | None = None


def expanded(where: str | Path) -> Path:
    """Return a path in which ``~`` and ``~NAME`` at the start are home directories.

    Raises:
        DataError: nobody is called so.
    """
    try:
        return Path(where).expanduser()
    except RuntimeError as error:
        raise DataError(
            "a path, where ~NAME stands for that user's home directory",
            got=f"{str(where)!r}, a user nobody knows here",
            remedy="Check the path; put ./ before it if a folder is called so.",
        ) from error


def paired(train: Listing, test: Listing | None) -> Splits:
    """Return both parts with the same classes in the same order, those of the training part.

    Raises:
        DataError: test images of a class the training images lack.
    """
    if test is None or test.classes == train.classes:
        return Splits(train, test)
    if train.named and test.named:
        return Splits(train, test.mapped(train.classes))
    classes = max(train.classes, test.classes, key=len)
    return Splits(replace(train, classes=classes), replace(test, classes=classes))


def spread(labels: Tensor, limit: int | None) -> Tensor:
    """Return positions of at most ``limit`` images, as even over the classes as they allow.

    The first images of each class are taken, and positions ascend: no randomness.

    Raises:
        DataError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise DataError("a limit of at least 1 image", got=str(limit), remedy="Raise limit=.")
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[torch.argsort(rank, stable=True)[:limit]].sort().values
