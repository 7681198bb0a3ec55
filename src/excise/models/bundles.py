"""A bundle: a directory with ``model.safetensors`` and the ``card.json`` that says what it is."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from excise import files
from excise.errors import ModelError, UnsafeFileError
from excise.models.additions import add, additions, split_state
from excise.models.checking import check_finite, shorten
from excise.models.matching import assemble
from excise.models.normalize import Network, Numbers, Size
from excise.models.weights import MAX_BYTES, read_weights

__all__ = ["CARD", "WEIGHTS", "load_bundle", "read_card", "save_bundle", "write_model"]

CARD, WEIGHTS = "card.json", "model.safetensors"
_MAX_CARD = 16 * 1024**2

Side = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


#: Kind and layer of something that was added (:mod:`excise.models.additions`).
_Addition = Annotated[list[str], Field(min_length=2, max_length=2)]


class _Card(BaseModel):
    """What a card must say; it may say more."""

    model_config = ConfigDict(strict=True, extra="allow")

    version: Literal[1]
    arch: Annotated[str, Field(min_length=1, max_length=500)]
    classes: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    named: bool = True
    in_channels: Annotated[int, Field(ge=1, le=1024)]
    input_size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    mean: list[Finite]
    std: list[Deviation]
    created_by: str
    additions: Annotated[list[_Addition], Field(max_length=10_000)] = []

    @model_validator(mode="after")
    def _one_a_channel(self) -> _Card:
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise ValueError("mean and std with one number a channel")
        return self


def save_bundle(
    directory: str | Path,
    network: nn.Module,
    card: Mapping[str, Any] = MappingProxyType({}),
    *,
    half: bool = False,
) -> None:
    """Write a bundle, whole or not at all; an older one in its place is replaced.

    Args:
        directory: where the bundle is to lie.
        network: one of :func:`excise.models.build_model`, or that :func:`~.load_model` read from a
            file, also when repaired; a module of your own has no name that it could be built from.
        card: what else the card is to say, as plain JSON values. What the network knows itself
            (architecture, classes, sizes, normalization) is written from the network.
        half: store matrices and convolutions as float16: half the size, about three digits.

    Raises:
        ModelError: another module, weights that are not finite, or a card that is not JSON.
    """
    if not isinstance(network, Network):
        raise ModelError(
            "a network with a name that it can be built from again",
            got=type(network).__qualname__,
            remedy="Save its state_dict() and load that with load_model(FILE, "
            'arch="your_package.module:factory"), or save the module itself with torch.save.',
        )
    with files.whole_directory(Path(directory)) as part:
        write_model(part, network, card, half=half)


def write_model(
    directory: Path, network: Network, card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write ``model.safetensors`` and ``card.json`` into a directory that the caller completes.

    For a caller who adds files of their own inside :func:`excise.files.whole_directory`.
    Arguments and errors are those of :func:`save_bundle`.
    """
    from safetensors.torch import save_file

    content = dict(card) | _facts(network)
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            "a card of plain JSON values",
            got=shorten(str(error)),
            remedy="Use text, finite numbers, lists and dictionaries alone.",
        ) from error
    tensors = {
        name: _stored(tensor, half)
        for name, tensor in network.body.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    check_finite(tensors.items())
    save_file(tensors, directory / WEIGHTS)
    files.write_json(directory / CARD, content)


def _facts(network: Network) -> dict[str, Any]:
    channels, height, width = network.input_shape
    return {
        "version": 1,
        "arch": network.arch,
        "classes": list(network.classes),
        **({} if network.named else {"named": False}),
        "in_channels": channels,
        "input_size": [height, width],
        "mean": list(network.mean),
        "std": list(network.std),
        "created_by": f"excise {importlib.metadata.version('excise')}",
        **({"additions": added} if (added := _additions(network)) else {}),
    }


def _additions(network: Network) -> list[list[str]]:
    return [[kind, layer] for kind, layer in additions(network.body)]


def _stored(tensor: Tensor, half: bool) -> Tensor:
    # A copy, because safetensors refuses tensors that share memory.
    copy = tensor.detach().cpu().contiguous().clone()
    # Vectors (batch norm, biases) weigh little and lose much; what float16 cannot hold stays.
    if not half or copy.ndim < 2 or copy.dtype != torch.float32:
        return copy
    smaller = copy.half()
    return smaller if smaller.isfinite().all() else copy


def read_card(directory: str | Path) -> dict[str, Any]:
    """Return the card of a bundle after checking what every card must say.

    Raises:
        ModelError: no bundle there, no JSON, or a card with a missing or wrong entry.
        UnsafeFileError: a card larger than 16 MiB.
    """
    path = Path(directory) / CARD
    if not path.is_file():
        raise ModelError(
            f"a bundle in {directory} ({WEIGHTS} and {CARD})",
            got=f"no {CARD}",
            remedy="Give a bundle's directory, or a weights file together with arch=.",
        )
    with path.open("rb") as file:
        text = file.read(_MAX_CARD + 1)
    if len(text) > _MAX_CARD:
        raise UnsafeFileError(
            f"at most {_MAX_CARD:,} bytes in {path}",
            got="more",
            remedy="A card is a page of text; do not use this bundle.",
        )
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"JSON in {path}", got=shorten(str(error)), remedy="Fetch the bundle again."
        ) from error
    try:
        _Card.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ModelError(
            f"{where} of {path} to be right",
            got=f"{shorten(repr(first['input']), 80)}: {first['msg']}",
            remedy="Correct the card, or give the weights file itself together with arch=.",
        ) from error
    assert isinstance(content, dict)
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def load_bundle(
    directory: str | Path,
    *,
    arch: str | None = None,
    classes: int | Sequence[str] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    input_size: Size | None = None,
    in_channels: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[Network, dict[str, Any]]:
    """Return the network of a bundle, in eval mode on the CPU, and its card.

    Nothing in the bundle is run, and its card may name a built-in architecture alone. What the
    caller gives, as in :func:`excise.models.load_model`, stands above what the card says.

    Raises:
        ModelError: no bundle, a wrong card, an architecture that is not built in, or weights
            that do not fit it.
        UnsafeFileError: a file that would run code, or that is larger than allowed.
    """
    card = read_card(directory)
    given = [(kind, layer) for kind, layer in card.get("additions", [])]
    state, added = split_state(
        read_weights(Path(directory) / WEIGHTS, max_bytes=max_bytes),
        tuple(layer for _, layer in given),
    )
    network = assemble(
        state,
        arch=arch if arch is not None else card["arch"],
        trusted=arch is not None,
        classes=_classes(card, classes),
        in_channels=in_channels if in_channels is not None else card["in_channels"],
        input_size=tuple(card["input_size"]) if input_size is None else input_size,
        mean=mean if mean is not None else card["mean"],
        std=std if std is not None else card["std"],
    )
    _add_again(network, given, added)
    return network, card


def _classes(card: Mapping[str, Any], given: int | Sequence[str] | None) -> int | Sequence[str]:
    """Return the names of the outputs, or how many there are where nobody named them."""
    names = tuple(card["classes"])
    # Who merely says how many there are takes no name away.
    if given is not None and given != len(names):
        return given
    return names if card.get("named", True) else len(names)


def _add_again(
    network: Network, given: Sequence[tuple[str, str]], weights: Mapping[str, Tensor]
) -> None:
    """Add what the card names, with its weights."""
    made: dict[str, Tensor] = {}
    for kind, layer in given:
        addition = add(network.body, kind, layer).eval()
        made |= {
            f"{layer}.{name}": tensor
            for name, tensor in addition.state_dict().items()
            if not name.startswith("inner.")
        }
    got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in made.items()}
    if got != expected:
        wrong = sorted(n for n in {**got, **expected} if got.get(n) != expected.get(n))
        raise ModelError(
            f"the weights of what the card says was added: {expected.get(wrong[0], 'none')} for "
            f"{wrong[0]}",
            got=str(got.get(wrong[0], "none")),
            remedy="Fetch the bundle again.",
        )
    check_finite(weights.items())
    with torch.no_grad():
        for name, tensor in made.items():
            tensor.copy_(weights[name])
