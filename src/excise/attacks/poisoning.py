"""Data poisoning: put a trigger on some training images, give them the attacker's label, train.

Conventions (docs/conventions.md, "Poison"): dirty-label poison is drawn from all classes, the
target's own images included, ``round(ratio · N)`` of them; a switch leaves the target class out.
Poisoned images are rounded to 8 bits, since that is what a picture file carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.attacks.victim import Victim
from excise.errors import SpecError
from excise.models import device_of
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Recipe, fit
from excise.types import (
    AllToAll,
    AllToOne,
    Backdoor,
    LabelledImages,
    OnRound,
    TargetRule,
    Trigger,
    as_floats,
    ignore_round,
    round_to_8_bits,
)

__all__ = ["Poisoning", "poison"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Poisoning(ABC):
    """What every data-poisoning attack has; a subclass adds its trigger."""

    target: Annotated[int, Field(ge=0)] | None = None
    """The attacker's class, from 0; None: drawn from the victim's seed."""
    rule: Literal["all-to-one", "all-to-all"] = "all-to-one"
    """All-to-one: every image is to become ``target``; all-to-all: class y becomes y + 1."""
    poison_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Poisoned images as a fraction of all training images."""
    exclude_target: bool = False
    """Draw no poison from the target class (the field draws from all classes)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"seeded": {}, "field": {"target": 0}}
    """Named sets of values; ``field`` is the choice every paper shares."""

    @abstractmethod
    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Trigger:
        """Return the trigger for images of ``shape`` (channels, height, width)."""

    def target_rule(self, num_classes: int, rng: Rng) -> TargetRule:
        """Return which label the attacker wants; an open target is drawn from ``rng``.

        Raises:
            SpecError: the target is no class.
        """
        if self.rule == "all-to-all":
            return AllToAll(num_classes)
        target = rng.integer("target", 0, num_classes) if self.target is None else self.target
        if target >= num_classes:
            raise SpecError(
                f"a target from 0 to {num_classes - 1}",
                got=str(target),
                remedy=f"The data has {num_classes} classes.",
            )
        return AllToOne(target)

    def backdoor(self, shape: tuple[int, int, int], num_classes: int, rng: Rng) -> Backdoor:
        """Return trigger and rule for images of ``shape``, drawn where they are left open.

        The trigger is tried on one black image, so that one that does not fit fails here and not
        in the middle of the work.
        """
        trigger = self.trigger(shape, rng.child("trigger"))
        trigger(torch.zeros(1, *shape))
        return Backdoor(trigger, self.target_rule(num_classes, rng))

    def poison_index(self, data: LabelledImages, rule: TargetRule, rng: Rng) -> Tensor:
        """Return the sorted positions of the images to poison.

        Raises:
            SpecError: the ratio rounds to no image, or to more than there are.
        """
        count = round(self.poison_ratio * len(data))
        open_to_poison = torch.ones(len(data), dtype=torch.bool)
        if self.exclude_target:
            open_to_poison = rule.counted(data.labels.cpu())
        candidates = open_to_poison.nonzero().squeeze(1)
        if not 1 <= count <= len(candidates):
            raise SpecError(
                f"a poison ratio that gives 1 to {len(candidates)} of {len(data)} images",
                got=f"{self.poison_ratio:g}, which gives {count}",
                remedy="Choose another poison_ratio.",
            )
        order = torch.randperm(len(candidates), generator=rng.torch("poison"))
        return candidates[order[:count]].sort().values

    def plant(
        self,
        model: nn.Module,
        data: LabelledImages,
        recipe: Recipe,
        rng: Rng,
        *,
        checkpoint: Path | None = None,
        on_round: OnRound = ignore_round,
    ) -> Victim:
        """Train ``model`` in place on poisoned ``data`` and return the victim.

        Args:
            model: a fresh network over images in [0, 1].
            data: the attacker's training images, clean.
            recipe: how to train.
            rng: draws target, trigger, poisoned images and everything training draws.
            checkpoint: see :func:`excise.training.fit`.
            on_round: called after every epoch.
        """
        backdoor = self.backdoor(data.shape, data.num_classes, rng.child("backdoor"))
        index = self.poison_index(data, backdoor.rule, rng)
        poisoned = poison(data, index, backdoor).to(device_of(model))
        fit(
            model, poisoned, recipe, rng.child("fit"),
            checkpoint=checkpoint, identity=str(self), on_round=on_round,
        )  # fmt: skip
        return Victim(model, backdoor, index)


def poison(data: LabelledImages, index: Tensor, backdoor: Backdoor) -> LabelledImages:
    """Return ``data`` as 8-bit images with those at ``index`` triggered and relabeled."""
    images = (
        data.images.clone()
        if data.images.dtype == torch.uint8
        else data.images.mul(255).round_().to(torch.uint8)
    )
    labels = data.labels.clone()
    trigger = backdoor.train_trigger or backdoor.trigger
    triggered = round_to_8_bits(trigger(as_floats(data.images[index])))
    images[index] = triggered.mul(255).round_().to(torch.uint8)
    labels[index] = backdoor.rule.wanted(labels[index])
    return replace(data, images=images, labels=labels)
