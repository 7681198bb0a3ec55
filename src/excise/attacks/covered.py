"""What the adaptive attacks share: payload and cover images, each with a trigger of its own.

Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for Backdoor
Defenses, ICLR 2023. Payload images carry the trigger and the attacker's label; cover images (the
paper's regularization samples) carry it and keep their own, so that the trigger alone does not
decide and the features of both mix. Specification: docs/methods/adaptive-attacks.md.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.poisoning import DirtyLabel, Drawn, Poisoned, poison
from excise.errors import SpecError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import Backdoor, Images, LabelledImages, Labels, TargetRule

__all__ = ["Covered"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Covered(Drawn, DirtyLabel):
    """An attack with cover images, in which every planted image draws its own training trigger."""

    poison_ratio: Annotated[float, Field(gt=0, le=1)] = 0.003
    """Payload images, relabeled, as a fraction of all training images (150 of 50,000)."""
    cover_rate: Annotated[float, Field(ge=0, lt=1)] = 0.003
    """Cover images, triggered under their own label, as a fraction of all training images."""

    @abstractmethod
    def stamp(self, images: Images, backdoor: Backdoor, rng: Rng) -> Images:
        """Return ``images`` with a training trigger drawn from ``rng`` for each of them."""

    def cover_index(
        self, data: LabelledImages, rule: TargetRule, index: Tensor, rng: Rng
    ) -> Tensor:
        """Return the sorted positions of ``round(cover_rate · N)`` images outside ``index``.

        None of them is of the target class: under its own label it would be payload.

        Raises:
            SpecError: the rate rounds to no image, or to more than are left.
        """
        left = rule.counted(data.labels.cpu())
        left[index] = False
        candidates = left.nonzero().squeeze(1)
        count = round(self.cover_rate * len(data))
        if count > len(candidates) or (count == 0 and self.cover_rate > 0):
            raise SpecError(
                f"a cover rate that gives 1 to {len(candidates)} of {len(data)} images, or 0",
                got=f"{self.cover_rate:g}, which gives {count}",
                remedy="Choose another cover_rate; 0 plants no cover image.",
            )
        order = torch.randperm(len(candidates), generator=rng.torch("cover"))
        return candidates[order[:count]].sort().values

    def poison(self, data: LabelledImages, backdoor: Backdoor, rng: Rng) -> Poisoned:
        """Return the training images with triggers on payload and cover images."""
        index = self.poison_index(data, backdoor.rule, rng)
        cover_index = self.cover_index(data, backdoor.rule, index, rng)
        payload = partial(self.stamp, backdoor=backdoor, rng=rng.child("payload"))
        cover = partial(self.stamp, backdoor=backdoor, rng=rng.child("cover"))
        data = poison(data, index, replace(backdoor, train_trigger=payload))
        data = poison(data, cover_index, Backdoor(cover, _Kept()))
        return Poisoned(data, index, cover_index)


class _Kept:
    """The rule of cover images: every image keeps its label."""

    def wanted(self, labels: Labels) -> Labels:
        return labels

    def counted(self, labels: Labels) -> Tensor:
        return torch.ones_like(labels, dtype=torch.bool)
