"""Where images come from: the data sets Excise knows by name, and everything a string can name."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from excise.data.decode import Channels, Size
from excise.data.folder import folder
from excise.data.hub import hub
from excise.data.listing import Listing, Reading, Splits, expanded
from excise.data.parquet import find_files, parquet
from excise.data.torchvision_sets import torchvision_set
from excise.errors import DataError
from excise.registry import rows
from excise.types import LabelledImages

__all__ = ["DataSet", "cifar10", "digits", "gtsrb", "list_source", "load_data"]

#: Mean and standard deviation per channel that the field normalizes with.
_NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_DATA_VARIABLE = "EXCISE_DATA"


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in memory.

    Args:
        name: the source it was loaded from.
        train: training images, uint8 ``(n, c, h, w)``.
        test: test images of the same shape and classes, or None where the source has none.
        mean: per channel, on the scale [0, 1]; for the network's normalization layer.
        std: likewise the standard deviation.
    """

    name: str
    train: LabelledImages
    test: LabelledImages | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_data(
    source: str | Path,
    *,
    root: str | Path | None = None,
    size: Size | None = None,
    channels: Channels | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
) -> DataSet:
    """Load a data set into memory.

    Args:
        source: one of

            - ``digits``: 1,797 images of 8×8 gray pixels, bundled with scikit-learn;
            - ``cifar10``, ``gtsrb``: parquet files under ``root`` or ``$EXCISE_DATA``;
            - ``parquet:DIR`` or ``parquet:PATTERN``: such files anywhere;
            - ``hub:OWNER/NAME``: a Hugging Face data set, its parquet files only;
            - ``torchvision:NAME``: a data set of torchvision, downloaded;
            - a folder with one subfolder per class, or with ``train`` and ``test`` of that kind.
        root: folder with the named sets, or to download into.
        size: height and width to resize to (antialiased bilinear; the aspect ratio is not
            kept); None: pictures keep theirs, which must then be one.
        channels: 1 for gray, 3 for color; None: 1 if all pictures are gray, else 3.
        limit: at most so many images in each split, even over classes, the first of each.
        skip_unreadable: leave damaged pictures out with a warning instead of raising.

    Returns:
        The images as uint8. ``mirror`` is set only where mirrored pictures are known to show the
        same class (CIFAR); for your own pictures use ``dataclasses.replace(images, mirror=True)``.
        ``mean`` and ``std`` are the field's for CIFAR-10 and GTSRB, else measured on ``train``.

    Raises:
        DataError: an unknown source, files that are not there, or pictures that do not fit.
    """
    reading = Reading(size, channels, limit, skip_unreadable)
    splits = list_source(source, root)
    train = splits.train.load(reading)
    # A split of gray pictures only must not come out gray where the other has color.
    reading = replace(reading, channels=3 if train.shape[0] == 3 else 1)
    test = splits.test.load(reading) if splits.test is not None else None
    if test is not None and test.shape != train.shape:
        raise DataError(
            "test images of the size of the training images",
            got=f"{test.shape[1]}×{test.shape[2]} and {train.shape[1]}×{train.shape[2]}",
            remedy="Pass size=(height, width) to resize them all.",
        )
    known = _NORMALIZATION.get(str(source).removeprefix("torchvision:").lower())
    mean, std = known if known and len(known[0]) == train.shape[0] else _mean_std(train)
    return DataSet(str(source), train, test, mean, std)


def digits(
    *, size: Size | None = None, channels: Channels | None = None, limit: int | None = None
) -> DataSet:
    """Load the handwritten digits that scikit-learn brings: 8×8, gray, 0 to 16, as 8 bits.

    In each class, the 4th, 7th and 10th of every ten images (in scikit-learn's order) are test
    images: 1,262 for training, 535 for testing, always the same.
    """
    return load_data("digits", size=size, channels=channels, limit=limit)


def cifar10(
    *,
    root: str | Path | None = None,
    size: Size | None = None,
    channels: Channels | None = None,
    limit: int | None = None,
) -> DataSet:
    """Load CIFAR-10: 50,000 and 10,000 color pictures of 32×32 in 10 classes, from parquet."""
    return load_data("cifar10", root=root, size=size, channels=channels, limit=limit)


def gtsrb(
    *,
    root: str | Path | None = None,
    size: Size | None = None,
    channels: Channels | None = None,
    limit: int | None = None,
) -> DataSet:
    """Load the German traffic signs: 43 classes, color, from parquet."""
    return load_data("gtsrb", root=root, size=size, channels=channels, limit=limit)


def list_source(source: str | Path, root: str | Path | None = None) -> Splits:
    """Return what a source has, before any picture is decoded; see :func:`load_data`."""
    root = expanded(root) if root is not None else None
    text = str(source)
    kind, colon, rest = text.partition(":")
    if isinstance(source, str):
        if text == "digits":
            return _digits()
        if text in ("cifar10", "gtsrb"):
            return _named(text, root)
        if colon and kind == "parquet":
            return parquet(rest)
        if colon and kind == "hub":
            return hub(rest, root=root)
        if colon and kind == "torchvision":
            return torchvision_set(rest, root=root)
    if isinstance(source, Path) or expanded(source).is_dir() or "/" in kind:
        return folder(source)
    known = {row.name.partition(":")[0]: row.name for row in rows("data") if row.name != "DIR"}
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.5)
    raise DataError(
        "a data source or a folder",
        got=repr(source),
        remedy=f"Did you mean {known[close[0]]!r}?"
        if close
        else f"Known: {', '.join(known.values())}.",
    )


def _named(name: str, root: Path | None) -> Splits:
    variable = os.environ.get(_DATA_VARIABLE)
    base = root or (Path(variable) if variable else None)
    if base is None or not find_files(base / name):
        raise DataError(
            f"parquet files of {name}",
            got=f"none in {str(base / name)!r}" if base else f"no {_DATA_VARIABLE} and no root",
            remedy=f"Set {_DATA_VARIABLE} (or root=) to the folder that holds {name}/, pass "
            f"parquet:DIR, or use torchvision:{name.upper()}, which downloads it.",
        )
    return parquet(base / name, mirror=name == "cifar10")


def _digits() -> Splits:
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).div(16).mul(255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    held_out = torch.isin(rank % 10, torch.tensor([3, 6, 9]))

    def listing(mask: torch.Tensor) -> Listing:
        chosen = mask.nonzero().flatten().tolist()
        return Listing(
            labels[mask],
            tuple(str(k) for k in range(10)),
            lambda index: (
                (f"digit {chosen[k]}", Image.fromarray(pixels[chosen[k]].numpy())) for k in index
            ),
        )

    return Splits(listing(~held_out), listing(held_out))


def _mean_std(images: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel on the scale [0, 1].

    From a histogram: exact, and without a float copy of all images.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[0]):
        histogram = torch.bincount(images.images[:, channel].flatten(), minlength=256).double()
        weight = histogram / histogram.sum()
        mean = (weight * levels).sum()
        means.append(round(float(mean), 6))
        # A constant channel has no spread to divide by.
        stds.append(round(float((weight * (levels - mean) ** 2).sum().sqrt()), 6) or 1.0)
    return tuple(means), tuple(stds)


def has_test(source: str | Path, root: str | Path | None = None) -> bool:
    """Return whether ``source`` has a test part, without reading its images."""
    return list_source(source, root).test is not None
