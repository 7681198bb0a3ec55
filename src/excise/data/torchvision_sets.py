"""The data sets of torchvision whose items are a picture and a class number."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excise.data.decode import Encoded
from excise.data.listing import Listing, Splits, paired
from excise.errors import DataError, nearest

__all__ = ["torchvision_set"]

_MIRROR = ("CIFAR10", "CIFAR100")
_TEST_NAMES = ("test", "val", "valid")


def torchvision_set(name: str, *, root: Path | None = None) -> Splits:
    """List a data set of ``torchvision.datasets``, downloading it where it is not there yet.

    Args:
        name: the class, for example ``CIFAR10``.
        root: folder to download into; by default ``~/.cache/excise/torchvision``.

    Raises:
        DataError: no such data set, one of another kind, or a failed download.
    """
    import torchvision.datasets

    known = [n for n in torchvision.datasets.__all__ if _fits(getattr(torchvision.datasets, n))]
    if name not in known:
        raise DataError(
            "a torchvision data set of pictures and class numbers, with train and test parts",
            got=repr(name),
            remedy=nearest(name, known),
        )
    factory = getattr(torchvision.datasets, name)
    folder = root or Path.home() / ".cache" / "excise" / "torchvision"
    parameters = inspect.signature(factory).parameters
    extra = {"download": True} if "download" in parameters else {}
    if "train" in parameters:
        choices: tuple[list[dict[str, Any]], ...] = ([{"train": True}], [{"train": False}])
    else:
        choices = (
            [{"split": split} for split in ("train", "trainval")],
            [{"split": split} for split in _TEST_NAMES],
        )
    train, test = (_first(factory, folder, kinds, extra, name) for kinds in choices)
    if train is None:
        raise DataError(
            f"a training part of torchvision's {name}",
            got="none called train",
            remedy="Export it to a folder with one subfolder per class.",
        )
    return paired(_listing(train, name), _listing(test, name) if test is not None else None)


def _fits(factory: Any) -> bool:
    if not inspect.isclass(factory):
        return False
    parameters = inspect.signature(factory).parameters
    return "root" in parameters and ("train" in parameters) != ("split" in parameters)


def _first(
    factory: Any, folder: Path, kinds: list[dict[str, Any]], extra: dict[str, Any], name: str
) -> Any:
    """Return the first part the data set has of those asked for, or None."""
    for kind in kinds:
        try:
            return factory(str(folder), **kind, **extra)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            if isinstance(error, ValueError) and "split" in kind:
                continue  # torchvision's "Unknown value for argument split"
            raise DataError(
                f"torchvision's {name} under {folder}",
                got=f"{type(error).__name__}: {error}",
                remedy="Check the network and the disk, or get it by hand and use a folder.",
            ) from error
    return None


def _listing(data: Any, name: str) -> Listing:
    labels = _labels(data, name)

    def pictures(index: Sequence[int]) -> Iterator[tuple[str, Encoded]]:
        for position in index:
            yield f"{name} image {position}", data[position][0]

    count = int(labels.max()) + 1
    classes = [str(c) for c in getattr(data, "classes", ())]
    named = len(classes) >= count
    names = classes if named else [str(k) for k in range(count)]
    return Listing(labels, tuple(names), pictures, named, mirror=name in _MIRROR)


def _labels(data: Any, name: str) -> Tensor:
    """Return the class numbers; most sets keep them in a field, which saves opening pictures."""
    for field in ("targets", "labels", "_labels"):
        values = getattr(data, field, None)
        if values is not None and np.ndim(values) == 1 and len(values) == len(data):
            break
    else:
        values = [data[k][1] for k in range(len(data))]
    try:
        return torch.as_tensor(values).to(torch.int64).reshape(len(data))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            "items of one picture and one class number",
            got=f"other items in torchvision's {name}",
            remedy="Use a classification data set.",
        ) from error
