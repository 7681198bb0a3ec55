"""A victim: a network with a planted backdoor, and its bundle on disk.

A bundle is a directory: ``model.safetensors`` and ``card.json`` (how it was made, what it
measured), for a victim also ``trigger.json``, ``trigger.safetensors`` and ``poison.safetensors``
(which images were poisoned), which only the evaluation reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from excise.errors import ModelError, TriggerError
from excise.files import whole_directory
from excise.models import Network, load_bundle, write_model
from excise.triggers import load_trigger, save_trigger
from excise.types import AllToAll, AllToOne, Backdoor, TargetRule

_INDICES = ("poison_index", "cover_index")

__all__ = ["Victim", "load_backdoor", "load_victim", "save_victim"]


@dataclass(frozen=True, eq=False)
class Victim:
    """A trained network and what was planted in it.

    Args:
        model: the network, in eval mode.
        backdoor: trigger and target rule; None for a clean twin.
        poison_index: positions of the poisoned images in the attacker's training images; None for
            a clean twin, and where images are triggered anew in every batch.
        cover_index: positions of images that carry the trigger under their own label, if any.
    """

    model: nn.Module
    backdoor: Backdoor | None
    poison_index: Tensor | None
    cover_index: Tensor | None = None


def save_victim(
    directory: Path, victim: Victim, card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write a victim's bundle, whole or not at all.

    Args:
        directory: replaced if it exists.
        victim: its model is a :class:`excise.models.Network`.
        card: how it was made and what it measured; plain JSON values.
        half: store weights in half precision.
    """
    assert isinstance(victim.model, Network)
    card = dict(card)
    if victim.backdoor is not None:
        card["rule"] = _rule_to_json(victim.backdoor.rule)
    with whole_directory(directory) as part:
        write_model(part, victim.model, card, half=half)
        if victim.backdoor is not None:
            save_trigger(part, victim.backdoor.trigger)
        indices = {name: getattr(victim, name) for name in _INDICES}
        if said := {name: index for name, index in indices.items() if index is not None}:
            save_file(said, part / "poison.safetensors")


def load_victim(directory: Path) -> tuple[Victim, dict[str, Any]]:
    """Read the bundle that :func:`save_victim` wrote; return the victim and its card.

    Raises:
        ModelError: no bundle, or an unsafe or damaged one.
        TriggerError: the trigger cannot be read.
    """
    model, card = load_bundle(directory)
    backdoor = load_backdoor(directory, card) if card.get("rule") else None
    indices = _load_indices(directory / "poison.safetensors")
    return Victim(model, backdoor, *indices), card


def load_backdoor(directory: Path, card: Mapping[str, Any]) -> Backdoor:
    """Return the trigger and target rule of a bundle whose card is ``card``.

    Raises:
        TriggerError: the bundle has none.
    """
    return Backdoor(load_trigger(directory), _rule_from_json(card.get("rule")))


def _load_indices(path: Path) -> tuple[Tensor | None, Tensor | None]:
    if not path.is_file():
        return None, None
    try:
        tensors = load_file(path)
        index: Tensor = tensors["poison_index"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            "a poison.safetensors with the tensor poison_index",
            got=f"{path} ({type(error).__name__}: {error})",
            remedy="Plant the victim again, or delete the file: only records need it.",
        ) from error
    return index, tensors.get("cover_index")


def _rule_to_json(rule: TargetRule) -> dict[str, Any]:
    assert isinstance(rule, AllToOne | AllToAll)
    name = "all-to-one" if isinstance(rule, AllToOne) else "all-to-all"
    return {"name": name, **asdict(rule)}


def _rule_from_json(said: Any) -> TargetRule:
    match said:
        case {"name": "all-to-one", "target": int(target)} if target >= 0:
            return AllToOne(target)
        case {"name": "all-to-all", "num_classes": int(classes)} if classes >= 1:
            return AllToAll(classes)
    raise TriggerError(
        "a card whose rule is all-to-one with a target, or all-to-all with num_classes",
        got=repr(said),
        remedy="Give a victim made by `excise plant`.",
    )
