"""What builds the networks of each family; :mod:`excise.models.names` is the way in."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from excise import registry
from excise.errors import ModelError, SpecError, nearest
from excise.models.checking import shorten

__all__ = [
    "Field",
    "did_you_mean",
    "downloads",
    "from_excise",
    "from_factory",
    "from_timm",
    "from_torchvision",
    "torchvision_names",
]

#: A value written after a name: ``width=16``.
Field = bool | int | float | str

# What build_model decides itself, or what would read or download weights.
_TAKEN = re.compile(r"num_classes|in_chans|in_channels|aux_logits|weights.*|pretrained.*|.*path.*")
_LARGEST = 8192


def from_excise(name: str, num_classes: int, in_channels: int, fields: Mapping[str, Field]) -> Any:
    """Return a network of this package."""
    try:
        factory = registry.find("model", f"excise:{name}").load()
    except SpecError as error:
        raise ModelError(error.expected, got=error.got, remedy=error.remedy) from error
    own = [key for key in inspect.signature(factory).parameters if not _TAKEN.fullmatch(key)]
    for key in fields:
        if key not in own:
            raise ModelError(f"a field of excise:{name}", got=repr(key), remedy=nearest(key, own))
    return factory(num_classes=num_classes, in_channels=in_channels, **fields)


def torchvision_names() -> list[str]:
    """Return the name of every classifier of torchvision."""
    from torchvision import models

    return cast("list[str]", models.list_models(module=models))


def from_torchvision(
    name: str, num_classes: int, in_channels: int, fields: Mapping[str, Field]
) -> Any:
    """Return a classifier of torchvision with random weights."""
    from torchvision import models

    if name not in torchvision_names():
        raise _unknown("torchvision", name, torchvision_names())
    _check_fields(f"torchvision:{name}", fields)
    extra: dict[str, Any] = dict(fields)
    if name in {"googlenet", "inception_v3"}:
        # Their auxiliary outputs serve training from scratch in 2014's way; one output is what
        # everything here works on. Saying so about weights keeps torchvision from warning.
        extra |= {"aux_logits": False, "init_weights": True}
    body = _attempt(
        f"torchvision:{name}",
        lambda: models.get_model(name, weights=None, num_classes=num_classes, **extra),
    )
    if in_channels != 3:
        _adapt_first_conv(body, name, in_channels)
    return body


def from_timm(name: str, num_classes: int, in_channels: int, fields: Mapping[str, Field]) -> Any:
    """Return a classifier of timm with random weights."""
    if not re.fullmatch(r"[\w.]+", name):
        raise downloads(f"timm:{name}")
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    _check_fields(f"timm:{name}", fields)
    return _attempt(
        f"timm:{name}",
        lambda: timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **fields
        ),
    )


def from_factory(name: str, num_classes: int, in_channels: int, fields: Mapping[str, Field]) -> Any:
    """Import ``package.module:factory`` and return what it makes."""
    module, _, attribute = name.partition(":")
    factory = _attempt(name, lambda: getattr(importlib.import_module(module), attribute))
    if not callable(factory):
        raise ModelError(
            f"{name} to be a function or class",
            got=type(factory).__name__,
            remedy="Name what builds the network: package.module:factory.",
        )
    taken = _attempt(name, lambda: inspect.signature(factory)).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    given = {"num_classes": num_classes, "in_channels": in_channels}
    given = {key: value for key, value in given.items() if anything or key in taken}
    return _attempt(name, lambda: factory(**{**given, **fields}))


def _attempt(arch: str, make: Callable[[], Any]) -> Any:
    """Call code that is not ours; whatever it raises becomes a ModelError with its words."""
    try:
        return make()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{arch} to build a network",
            got=f"{type(error).__name__}: {shorten(str(error))}",
            remedy="Check the name and the fields after it.",
        ) from error


def _check_fields(arch: str, fields: Mapping[str, Field]) -> None:
    # Texts name files, layers or downloads, and a card found on disk may hold these fields:
    # numbers in a sane range cannot do harm.
    for key, value in fields.items():
        if _TAKEN.fullmatch(key) or isinstance(value, str):
            raise ModelError(
                f"numbers, true or false as fields of {arch}",
                got=shorten(f"{key}={value}", 80),
                remedy="Leave it out: weights are loaded from your file, and the numbers of "
                "classes and channels have arguments of their own.",
            )
        if not (math.isfinite(value) and abs(value) <= _LARGEST):
            raise ModelError(
                f"fields of {arch} of at most {_LARGEST}",
                got=f"{key}={value}",
                remedy="Give a smaller number.",
            )


def _adapt_first_conv(body: nn.Module, name: str, in_channels: int) -> None:
    """Replace the convolution that takes the image by one for ``in_channels`` channels."""
    for layer, old in body.named_modules():
        if isinstance(old, nn.Conv2d) and old.in_channels == 3 and old.groups == 1:
            new = nn.Conv2d(
                in_channels,
                old.out_channels,
                cast("tuple[int, int]", old.kernel_size),
                cast("tuple[int, int]", old.stride),
                cast("tuple[int, int]", old.padding),
                cast("tuple[int, int]", old.dilation),
                bias=old.bias is not None,
            )
            if not old.weight.is_meta:
                # torchvision scales by the fan out, which is the same for both.
                nn.init.normal_(new.weight, std=float(old.weight.detach().std()))
            parent, _, leaf = layer.rpartition(".")
            setattr(body.get_submodule(parent), leaf, new)
            return
    raise ModelError(
        f"torchvision:{name} to start with a convolution of 3 channels",
        got="none",
        remedy=f"Repeat the image's channels to 3, or choose another network for {in_channels}.",
    )


def _unknown(family: str, name: str, known: Sequence[str]) -> ModelError:
    otherwise = f"{family} knows {len(known)}, such as {', '.join(known[:3])}."
    return ModelError(
        f"the name of a classifier in {family}",
        got=repr(name),
        remedy=did_you_mean(name, known, otherwise),
    )


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return the sentence that offers the nearest of many names, or ``otherwise``."""
    near = nearest(name, known)
    return near if near.startswith("Did") else otherwise


def downloads(arch: str) -> ModelError:
    """Return the error for a name that stands for a download."""
    return ModelError(
        "an architecture's plain name",
        got=f"{arch!r}, which would download or read files",
        remedy="Download the weights yourself and load them: load_model(FILE, arch='timm:NAME').",
    )
