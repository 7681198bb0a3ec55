"""The one way in for networks that others trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, overload

from torch import nn

from excise.errors import ModelError
from excise.models.bundles import load_bundle
from excise.models.checking import check_finite, check_model
from excise.models.matching import assemble
from excise.models.normalize import Network, Numbers, Size, as_sides
from excise.models.weights import MAX_BYTES, read_weights

__all__ = ["load_model"]

M = TypeVar("M", bound=nn.Module)
Source = str | os.PathLike[str]


@overload
def load_model(
    source: Source,
    *,
    arch: str | None = None,
    classes: int | Sequence[str] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_size: Size | None = None,
    in_channels: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> Network: ...


@overload
def load_model(
    source: M,
    *,
    arch: str | None = None,
    classes: int | Sequence[str] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_size: Size | None = None,
    in_channels: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> M: ...


def load_model(
    source: Source | nn.Module,
    *,
    arch: str | None = None,
    classes: int | Sequence[str] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_size: Size | None = None,
    in_channels: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> nn.Module:
    """Return a network that maps images ``(n, c, h, w)`` in [0, 1] to logits ``(n, classes)``.

    Nothing a file holds is ever run, and nothing is downloaded. Safetensors and what
    ``torch.save`` wrote are told apart by content and read without unpickling code; wrappers such
    as ``{"state_dict": …}`` and prefixes such as ``module.`` are understood. The network comes
    back in eval mode, on the CPU, in float32.

    Args:
        source: a bundle's directory; or a weights file, together with ``arch``; or a module,
            which is checked and comes back as it is.
        arch: ``excise:NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``,
            the last of which runs that package's code. For a bundle it overrides the card, whose
            own word is accepted for built-in networks alone.
        classes: the name of every output, or how many there are; by default what the bundle says
            or what the shape of the output layer tells, else the answers to two random images.
        mean: one number a channel or one for all, subtracted from images in [0, 1]; by default
            what the bundle says, else 0.
        std: one positive number a channel or one for all, divided by; by default what the bundle
            says, else 1.
        input_size: height and width of the images, or one number for both; by default what the
            bundle says or what the architecture was made for.
        in_channels: channels of the images; by default what the bundle says, else 3.
        max_bytes: the largest weights file, and the largest sum of its tensors, in bytes; 2 GiB.

    Raises:
        ModelError: no such file; no weights in it; weights that do not fit the architecture or
            are not finite; an unknown architecture; a module that does not classify images.
        UnsafeFileError: a file that would run code when loaded, or that is larger than allowed.
    """
    if isinstance(source, nn.Module):
        return _checked(source, classes, input_size, in_channels)
    path = Path(source)
    if path.is_dir():
        network, _ = load_bundle(
            path,
            arch=arch,
            classes=classes,
            mean=mean,
            std=std,
            input_size=input_size,
            in_channels=in_channels,
            max_bytes=max_bytes,
        )
        return network
    state = read_weights(path, max_bytes=max_bytes)
    if arch is None:
        raise ModelError(
            f"the architecture of the weights in {path}",
            got="none",
            remedy="Name it, for example arch='torchvision:resnet18' (or --arch).",
        )
    return assemble(
        state,
        arch=arch,
        trusted=True,
        classes=classes,
        in_channels=3 if in_channels is None else in_channels,
        input_size=input_size,
        mean=mean,
        std=std,
    )


def _checked(
    model: nn.Module,
    classes: int | Sequence[str] | None,
    input_size: Size | None,
    in_channels: int | None,
) -> nn.Module:
    """Check a module as far as the shape of its images is known."""
    count = classes if isinstance(classes, int) or classes is None else len(classes)
    if isinstance(model, Network):
        check_model(model, model.input_shape, count if count is not None else len(model.classes))
    elif input_size is not None:
        check_model(model, (in_channels or 3, *as_sides(input_size)), count)
    else:
        check_finite((*model.named_parameters(), *model.named_buffers()))
    return model
