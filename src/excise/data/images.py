"""The images a user brings: a folder, any data source, or tensors of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from excise.data.classes import Names, class_map
from excise.data.decode import Channels, Size, as_size
from excise.data.listing import Reading, Undecoded, spread
from excise.data.sources import list_source
from excise.errors import DataError
from excise.types import LabelledImages

__all__ = ["list_images", "load_images"]

#: ITU-R 601 luma, which Pillow uses too when it turns color into gray.
_LUMA = (0.299, 0.587, 0.114)


def load_images(
    source: Any,
    labels: Any = None,
    *,
    classes: Names | None = None,
    size: Size | None = None,
    channels: Channels | None = None,
    split: Literal["train", "test"] = "train",
    limit: int | None = None,
    skip_unreadable: bool = False,
    root: str | Path | None = None,
) -> LabelledImages:
    """Load labeled images for a network: from a folder, a data source, or your own tensors.

    The network's outputs have an order, and folders only have names. ``classes`` states which is
    which; without it classes are ordered by name, as text, which is what torchvision's
    ``ImageFolder`` does in training. Show :func:`excise.data.describe_classes` to whoever can
    tell whether that is right.

    Args:
        source: a folder with one subfolder per class; any source of
            :func:`excise.data.load_data`; or images ``(n, c, h, w)`` as a tensor or array, uint8
            or float in [0, 1], channels first; or the pair (images, labels).
        labels: ``(n,)`` class numbers, where ``source`` is images alone.
        classes: class names in the order of the network's outputs, or {name: output number}, or
            a JSON file with either. A class without images is fine here (a scan or a repair needs
            some of each); images without a class are not.
        size: height and width to resize to (antialiased bilinear, aspect ratio not kept).
        channels: 1 for gray, 3 for color; None: as the images are.
        split: which part of a source that has several.
        limit: at most so many images, even over classes, the first of each.
        skip_unreadable: leave damaged pictures out with a
            :class:`~excise.data.SkippedPicturesWarning` instead of raising.
        root: folder with named data sets, or to download into.

    Raises:
        DataError: nothing there, damaged pictures, sizes that differ without ``size``, or
            classes that do not match.
    """
    _check_split(split)
    if isinstance(source, str | Path):
        if labels is not None:
            raise DataError(
                "labels only together with image tensors",
                got=f"labels and the source {str(source)!r}",
                remedy="A source brings its own labels; leave them out.",
            )
        return list_images(
            source,
            classes=classes,
            size=size,
            channels=channels,
            split=split,
            limit=limit,
            skip_unreadable=skip_unreadable,
            root=root,
        ).load()
    if labels is None and isinstance(source, tuple | list) and len(source) == 2:
        source, labels = source
    if labels is None:
        raise DataError(
            "a label for every image",
            got="images alone",
            remedy="Pass load_images(images, labels).",
        )
    return _from_tensors(
        _tensor(source, "images"), _tensor(labels, "labels"), classes, size, channels, limit
    )


def list_images(
    source: str | Path,
    *,
    classes: Names | None = None,
    size: Size | None = None,
    channels: Channels | None = None,
    split: Literal["train", "test"] = "train",
    limit: int | None = None,
    skip_unreadable: bool = False,
    root: str | Path | None = None,
) -> Undecoded:
    """List the images of a folder or data source without decoding any.

    From a million pictures ten a class can be drawn, and those alone are read:
    :func:`excise.data.defender_data` takes what this returns. The arguments, and the errors that
    need no picture, are those of :func:`load_images`.
    """
    _check_split(split)
    splits = list_source(source, root)
    listing = splits.train if split == "train" else splits.test
    if listing is None:
        raise DataError(
            f"a test split in {str(source)!r}",
            got="training images only",
            remedy="Use split='train', or add a folder or files named test.",
        )
    return listing.mapped(classes).read(Reading(size, channels, limit, skip_unreadable))


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise DataError("split 'train' or 'test'", got=repr(split), remedy="Choose one.")


def _from_tensors(
    images: Tensor,
    labels: Tensor,
    classes: Names | None,
    size: Size | None,
    channels: Channels | None,
    limit: int | None,
) -> LabelledImages:
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise DataError(
            "images of shape (n, c, h, w)",
            got=f"{tuple(images.shape)}, channels last",
            remedy="Turn them with images.permute(0, 3, 1, 2).",
        )
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        raise DataError(
            "labels as whole numbers of shape (n,)",
            got=f"{labels.dtype} of shape {tuple(labels.shape)}",
            remedy="Give one class number per image.",
        )
    labels = labels.long()
    names = class_map(None, classes).classes if classes is not None else None
    if names is None:
        names = tuple(str(k) for k in range(int(labels.max()) + 1 if len(labels) else 1))
    if images.is_floating_point():
        images = images.float()
    whole = LabelledImages(images, labels, names)
    chosen = whole.subset(spread(whole.labels.cpu(), limit))
    return LabelledImages(_fitted(chosen.images, size, channels), chosen.labels, names)


def _fitted(
    images: Shaped[Tensor, "n c h w"], size: Size | None, channels: Channels | None
) -> Shaped[Tensor, "n c h w"]:
    """Return the images with the wanted channels and size, in the type they came in."""
    if channels is not None and images.shape[1] != channels:
        if images.shape[1] == 1:
            images = images.expand(-1, channels, -1, -1)
        elif images.shape[1] == 3:
            weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
            images = _typed((images.float() * weights).sum(1, keepdim=True), images.dtype)
        else:
            raise DataError(
                "images with 1 or 3 channels",
                got=f"{images.shape[1]} channels",
                remedy="Leave out channels=, or convert the images first.",
            )
    wanted = as_size(size)
    if wanted is not None and tuple(images.shape[2:]) != wanted:
        resized = F.interpolate(
            images.float(), size=wanted, mode="bilinear", antialias=True, align_corners=False
        )
        images = _typed(resized, images.dtype)
    return images.contiguous()


def _typed(images: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        return images.round().clamp(0, 255).to(torch.uint8)
    return images.clamp(0, 1)  # rounding may pass 1 by an ulp


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        # A copy, so that a read-only or later changed array does no harm.
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} as a tensor or an array",
            got=type(values).__name__,
            remedy="Images as (n, c, h, w), labels as (n,) class numbers, or a folder's path.",
        ) from error
