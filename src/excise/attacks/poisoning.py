"""Data poisoning: put a trigger on some training images, give them the attacker's label, train.

An attack is put together from three questions, each answered once:

* which images, under which label: :class:`DirtyLabel` or :class:`CleanLabel`;
* where the trigger comes from: :class:`Drawn` from a seed, or learned in :meth:`Poisoning.learn`;
* when images are triggered: once, before training, or anew in every batch
  (:meth:`Poisoning.companion`).

Conventions: docs/conventions.md, "Poison". Poisoned images are rounded to 8 bits, since that is
what a picture file carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.attacks.victim import Victim
from excise.attacks.workshop import Workshop, in_words
from excise.errors import SpecError
from excise.models import device_of
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Companion, Recipe, fit
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

__all__ = ["CleanLabel", "DirtyLabel", "Drawn", "Poisoned", "Poisoning", "poison", "quota"]


@plain_dataclass(frozen=True, eq=False)
class Poisoned:
    """Training images after the attack.

    Args:
        data: all of them, as 8-bit images.
        index: positions of those that carry the trigger and the attacker's label.
        cover_index: positions of those that carry the trigger and their own label, where the
            attack has such.
    """

    data: LabelledImages
    index: Tensor
    cover_index: Tensor | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Poisoning(ABC):
    """What every data-poisoning attack has."""

    target: Annotated[int, Field(ge=0)] | None = None
    """The attacker's class, from 0; None: drawn from the victim's seed."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"seeded": {}, "field": {"target": 0}}
    """Named sets of values; ``field`` is the choice every paper shares."""
    SURROGATE: ClassVar[bool] = False
    """Whether the attacker works on a clean network of their own; a sweep gives the clean twin."""

    @abstractmethod
    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor; work it takes is done through the workshop, so that it resumes."""

    @abstractmethod
    def poison_index(self, data: LabelledImages, rule: TargetRule, rng: Rng) -> Tensor:
        """Return the sorted positions of the images to poison."""

    def target_rule(self, num_classes: int, rng: Rng) -> TargetRule:
        """Return which label the attacker wants; an open target is drawn from ``rng``.

        Raises:
            SpecError: the target is no class.
        """
        target = rng.integer("target", 0, num_classes) if self.target is None else self.target
        if target >= num_classes:
            raise SpecError(
                f"a target from 0 to {num_classes - 1}",
                got=str(target),
                remedy=f"The data has {num_classes} classes.",
            )
        return AllToOne(target)

    def poison(self, data: LabelledImages, backdoor: Backdoor, rng: Rng) -> Poisoned:
        """Return the training images with the trigger on some of them."""
        index = self.poison_index(data, backdoor.rule, rng)
        return Poisoned(poison(data, index, backdoor), index)

    def companion(self, workshop: Workshop, backdoor: Backdoor) -> Companion | None:
        """Return what triggers images anew in every batch; None: they are triggered once."""
        return None

    def planted(
        self, workshop: Workshop, backdoor: Backdoor, companion: Companion | None
    ) -> Backdoor:
        """Return the backdoor after training; the companion has it where it was learned there."""
        return backdoor

    def plant(
        self,
        model: nn.Module,
        data: LabelledImages,
        recipe: Recipe,
        rng: Rng,
        *,
        surrogate: nn.Module | None = None,
        checkpoints: Path | None = None,
        on_round: OnRound = ignore_round,
    ) -> Victim:
        """Train ``model`` in place on poisoned ``data`` and return the victim.

        Args:
            model: a fresh network over images in [0, 1].
            data: the attacker's training images, clean.
            recipe: how to train.
            rng: draws target, trigger, poisoned images and everything training draws.
            surrogate: a clean network the attacker already has, for attacks that need one; None:
                they train it as the clean twin is trained.
            checkpoints: directory of what lets an interrupted planting go on after the last
                finished epoch; the caller removes it once the victim is safe. None: keep nothing.
            on_round: called after every epoch.

        Raises:
            SpecError: a target or ratio that does not fit the data.
            TriggerError: a trigger that does not fit the images.
            DivergedError: the loss of an epoch is not finite.
            DataError: the checkpoints belong to another run.
        """
        words = in_words(self)
        workshop = Workshop(model, data, recipe, rng, words, surrogate, checkpoints, on_round)
        rule = self.target_rule(data.num_classes, rng.child("backdoor"))
        # Refused before the long work: a ratio that gives no image.
        self.poison_index(data, rule, rng)
        backdoor = self.learn(workshop, rule)
        companion = self.companion(workshop, backdoor)
        if companion is None:
            poisoned = self.poison(data, backdoor, rng)
        else:
            poisoned = Poisoned(data, torch.empty(0, dtype=torch.int64))
        fit(
            model, poisoned.data.to(device_of(model)), recipe, rng.child("fit"),
            checkpoint=workshop.file("fit.pt"), identity=workshop.identity,
            companion=companion, on_round=on_round,
        )  # fmt: skip
        index = poisoned.index if companion is None else None
        backdoor = self.planted(workshop, backdoor, companion)
        return Victim(model, backdoor, index, poisoned.cover_index)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DirtyLabel(Poisoning):
    """Poisoned images are drawn from all classes and relabeled."""

    rule: Literal["all-to-one", "all-to-all"] = "all-to-one"
    """All-to-one: every image is to become ``target``; all-to-all: class y becomes y + 1."""
    poison_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Poisoned images as a fraction of all training images."""
    exclude_target: bool = False
    """Draw no poison from the target class (the field draws from all classes)."""

    def target_rule(self, num_classes: int, rng: Rng) -> TargetRule:
        """Return all-to-all, or all-to-one with a target that may be drawn."""
        if self.rule == "all-to-all":
            return AllToAll(num_classes)
        return super().target_rule(num_classes, rng)

    def poison_index(self, data: LabelledImages, rule: TargetRule, rng: Rng) -> Tensor:
        """Return the sorted positions of ``round(ratio · N)`` images.

        Raises:
            SpecError: the ratio rounds to no image, or to more than there are.
        """
        count = round(self.poison_ratio * len(data))
        open_to_poison = torch.ones(len(data), dtype=torch.bool)
        if self.exclude_target:
            open_to_poison = rule.counted(data.labels.cpu())
        candidates = open_to_poison.nonzero().squeeze(1)
        return _draw(candidates, count, self.poison_ratio, f"of {len(data)} images", rng)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CleanLabel(Poisoning):
    """Poisoned images are drawn from the target class alone and keep their label."""

    poison_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Poisoned images as a fraction of the target class; all of CIFAR-10's is 10 % of the set."""

    def poison_index(self, data: LabelledImages, rule: TargetRule, rng: Rng) -> Tensor:
        """Return the sorted positions of ``round(ratio · n)`` of the target's n images.

        Raises:
            SpecError: the ratio rounds to no image.
        """
        assert isinstance(rule, AllToOne)
        candidates = (data.labels.cpu() == rule.target).nonzero().squeeze(1)
        count = round(self.poison_ratio * len(candidates))
        where = f"of the {len(candidates)} images of class {rule.target}"
        return _draw(candidates, count, self.poison_ratio, where, rng)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Drawn(Poisoning):
    """An attack whose trigger comes from a seed alone: before any data is seen, without training.

    It stands before :class:`DirtyLabel` or :class:`CleanLabel` among the base classes.
    """

    DRAWN: ClassVar[tuple[str, ...] | None] = ("target",)
    """Fields which, left open, are drawn from the seed; who describes the trigger in words must
    give them. None: no words describe it, since part of it is always drawn."""

    @abstractmethod
    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Trigger:
        """Return the trigger for images of ``shape`` (channels, height, width).

        Raises:
            TriggerError: it does not fit such images.
        """

    def backdoor(self, shape: tuple[int, int, int], num_classes: int, rng: Rng) -> Backdoor:
        """Return trigger and rule for images of ``shape``, drawn where they are left open.

        The trigger is tried on one black image, so that one that does not fit fails here and not
        in the middle of the work.
        """
        trigger = self.trigger(shape, rng.child("trigger"))
        trigger(torch.zeros(1, *shape))
        return Backdoor(trigger, self.target_rule(num_classes, rng))

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the drawn backdoor; there is nothing to learn."""
        data = workshop.data
        return self.backdoor(data.shape, data.num_classes, workshop.rng.child("backdoor"))


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


def quota(ratio: float, seen: int, size: int) -> int:
    """Return how many images of a batch to trigger so that an epoch gets ``round(ratio · N)``.

    Args:
        ratio: the fraction wanted.
        seen: images of the epoch before this batch.
        size: images of this batch.
    """
    return round(ratio * (seen + size)) - round(ratio * seen)


def _draw(candidates: Tensor, count: int, ratio: float, where: str, rng: Rng) -> Tensor:
    if not 1 <= count <= len(candidates):
        raise SpecError(
            f"a poison ratio that gives 1 to {len(candidates)} {where}",
            got=f"{ratio:g}, which gives {count}",
            remedy="Choose another poison_ratio.",
        )
    order = torch.randperm(len(candidates), generator=rng.torch("poison"))
    return candidates[order[:count]].sort().values
