"""A network and the images its defender may have.

Images are listed, drawn, and only then decoded: ten a class of a million are ten a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from excise.commands.options import Given
from excise.console import Story
from excise.data import Undecoded
from excise.errors import ModelError
from excise.experiments.plant import pool_of
from excise.models import Network, check_model, read_card

__all__ = ["opened", "planted_asr"]

T = TypeVar("T", bound=BaseModel)


class _Source(BaseModel):
    source: str
    victim_images: Annotated[float, Field(gt=0, allow_inf_nan=False)] | int


class _Made(BaseModel):
    """What a card says of how the network was planted; it may say more."""

    model_config = ConfigDict(strict=True, extra="allow")

    seed: int
    data: _Source


class _Value(BaseModel):
    value: float | None = None


class _Measured(BaseModel):
    asr: _Value | None = None


def opened(
    given: Given, model: str, source: str, device: torch.device, story: Story
) -> tuple[Network, Mapping[str, Any], Undecoded, str]:
    """Return a network, its card, the images the defender draws from, and where those come from.

    Raises:
        DataError: images that do not fit the network.
        ModelError: a network that cannot be read, or that does not fit the images, or whose card
            says of its making what none of ours says.
    """
    network = given.network(model).to(device)
    card = read_card(Path(model)) if Path(model).is_dir() else {}
    images, order = given.listed(network, source)
    story.stage(order)
    if not Path(model).is_dir() and given.mean is None and given.std is None:
        story.stage("no --mean and --std: the network is given images in [0, 1] as they are")
    check_model(network, network.input_shape, len(images.classes))
    return network, card, *_pool(source, images, card)


def _pool(source: str, images: Undecoded, card: Mapping[str, Any]) -> tuple[Undecoded, str]:
    """Return the images the defender draws from, and in words where they come from.

    A victim's card says which training images it got; the defender draws from the others.
    """
    made = _read(_Made, card, "made")
    if made is None or not _same(made.data.source, source):
        return images, f"{source}: all its training images"
    pool = pool_of(images, made.seed, made.data.victim_images).pool
    return pool, f"{source}: training images the victim never saw"


def _same(one: str, other: str) -> bool:
    """Return whether two names are of one source: one folder has many."""
    if one == other:
        return True
    heads, paths = zip(*(_parted(name) for name in (one, other)), strict=True)
    return heads[0] == heads[1] and all(p.is_dir() for p in paths) and paths[0].samefile(paths[1])


def _parted(name: str) -> tuple[str, Path]:
    head, colon, rest = name.rpartition(":")
    return head + colon, Path(rest)


def planted_asr(card: Mapping[str, Any]) -> float | None:
    """Return the attack success that a card states, None where it states none.

    Raises:
        ModelError: it says so in a form that none of ours has.
    """
    measured = _read(_Measured, card, "measured")
    return measured.asr.value if measured is not None and measured.asr is not None else None


def _read(form: type[T], card: Mapping[str, Any], key: str) -> T | None:
    if not (said := card.get(key)):
        return None
    try:
        return form.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (key, *first["loc"])))
        raise ModelError(
            f"a card whose {key!r} is as excise plant writes it",
            got=f"{where}: {first['msg']}",
            remedy="Fetch the bundle again, or take the entry out of card.json.",
        ) from error
