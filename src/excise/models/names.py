"""From the name of an architecture to a network with fresh weights.

::

    excise:preactresnet18,width=16     this package's own
    torchvision:resnet18               a classifier of torchvision.models
    timm:mobilenetv3_large_100         a classifier of timm
    package.module:factory             your own function; runs that package's code

Nothing here downloads: the weights are random until some are loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from excise import registry
from excise.errors import ModelError, SpecError
from excise.models.families import (
    Field,
    did_you_mean,
    downloads,
    from_excise,
    from_factory,
    from_timm,
    from_torchvision,
    torchvision_names,
)
from excise.models.normalize import Network, Numbers, Size, as_sides
from excise.seeding import Rng

__all__ = ["build_body", "build_model", "is_built_in", "skeleton"]

# Families whose code comes with Excise; a card found on disk may name these alone.
_MAKERS = {"excise": from_excise, "torchvision": from_torchvision, "timm": from_timm}

_FORMS = "excise:NAME, torchvision:NAME, timm:NAME or package.module:factory"
_EXAMPLE = "Write for example excise:preactresnet18,width=16."


def build_model(
    arch: str,
    *,
    classes: int | Sequence[str],
    in_channels: int = 3,
    input_size: Size | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    rng: Rng | None = None,
    trusted: bool = True,
) -> Network:
    """Return a network with random weights, in train mode, on the CPU.

    Args:
        arch: ``excise:NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``,
            each with fields of the network after it (``,width=16``). A factory is called with
            ``num_classes=`` and ``in_channels=`` where it takes them, and with the fields.
        classes: the name of every output, or how many there are (then named ``"0"``, ``"1"``…).
        in_channels: channels of an image. A torchvision network made for 3 gets a first
            convolution of that many.
        input_size: height and width of the images, or one number for both. By default what the
            network was made for: 32×32 for ``excise:``, 224×224 for most others.
        mean: one number a channel or one for all, subtracted from images in [0, 1]; 0 by default.
        std: one number a channel or one for all, divided by; 1 by default.
        rng: draws the weights (use ``"init"``); without it they are drawn from seed 0. Torch's
            global generators are left as they were.
        trusted: False for a name that was found on disk: only built-in families are accepted,
            so that no package of someone's choosing is imported.

    Raises:
        ModelError: an unknown name (the message offers the nearest), a field or size the network
            does not take, or a name that would download or run code where that is not allowed.
    """
    names = _class_names(classes)
    if not isinstance(in_channels, int) or in_channels < 1:
        raise ModelError(
            "in_channels of at least 1", got=repr(in_channels), remedy="Gray is 1, color is 3."
        )
    with (rng or Rng(0)).scope("init"):
        body = build_body(arch, len(names), in_channels, trusted=trusted)
    height, width = _usual_size(arch, body) if input_size is None else as_sides(input_size)
    return Network(
        body,
        arch=arch,
        classes=names,
        named=not isinstance(classes, int),
        input_shape=(in_channels, height, width),
        mean=mean,
        std=std,
    )


def build_body(arch: str, num_classes: int, in_channels: int, *, trusted: bool) -> nn.Module:
    """Return the network without its normalization; weights come from torch's global generator.

    Raises:
        ModelError: as :func:`build_model`.
    """
    family, name, fields = _split(arch)
    if family not in _MAKERS and not trusted:
        raise ModelError(
            "a built-in architecture (excise:NAME, torchvision:NAME or timm:NAME)",
            got=f"{arch!r}, which would run code that the file chose",
            remedy="If you trust that package, name it yourself: arch= or --arch.",
        )
    make = _MAKERS.get(family, from_factory)
    body = make(name if family in _MAKERS else f"{family}:{name}", num_classes, in_channels, fields)
    if not isinstance(body, nn.Module):
        raise ModelError(
            f"{arch} to return a torch.nn.Module",
            got=type(body).__name__,
            remedy="Name a function or class that takes num_classes and returns the network.",
        )
    return body


def skeleton(
    arch: str, num_classes: int, in_channels: int, *, trusted: bool
) -> dict[str, torch.Tensor]:
    """Return the state dict a network would have, as tensors that take no memory.

    Raises:
        ModelError: as :func:`build_model`.
    """
    with Rng(0).scope("skeleton"), torch.device("meta"):
        return build_body(arch, num_classes, in_channels, trusted=trusted).state_dict()


def is_built_in(arch: str) -> bool:
    """Return whether the name belongs to a family whose code comes with Excise.

    Raises:
        ModelError: it is no name at all.
    """
    return _split(arch)[0] in _MAKERS


def _split(arch: str) -> tuple[str, str, dict[str, Field]]:
    """Split ``"family:name,key=value"``; values become numbers where they look like numbers."""
    try:
        word, texts = registry.parse(arch)
    except SpecError as error:
        raise ModelError(error.expected, got=error.got, remedy=_EXAMPLE) from error
    family, colon, name = word.partition(":")
    if family in {"hf_hub", "hf-hub", "local-dir"}:
        raise downloads(arch)
    if not colon or not re.fullmatch(r"[\w.]+", family) or not name:
        known = [row.name for row in registry.rows("model") if row.target]
        known += [f"torchvision:{known}" for known in torchvision_names()]
        by_end = {known.partition(":")[2]: known for known in known}
        remedy = f"Write {by_end[word]}." if word in by_end else did_you_mean(word, known, _EXAMPLE)
        raise ModelError(_FORMS, got=repr(arch), remedy=remedy)
    return family, name, {key: _value(text) for key, text in texts.items()}


def _value(text: str) -> Field:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    if isinstance(classes, str) or len(names) < 1 or not all(isinstance(n, str) for n in names):
        raise ModelError(
            "classes as a number of at least 1, or one name for every output",
            got=repr(classes)[:80],
            remedy="Write for example classes=10.",
        )
    return names


def _usual_size(arch: str, body: nn.Module) -> tuple[int, int]:
    family, name, _ = _split(arch)
    if family == "timm":
        height, width = cast("Any", body).pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        return height, width
    if family == "torchvision":
        return (299, 299) if name == "inception_v3" else (224, 224)
    return 32, 32
