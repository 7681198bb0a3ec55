"""What attacks share that trigger images anew in every batch: WaNet and BppAttack.

Every batch holds images with the trigger under the attacker's label, and others with a near miss
of it under their own, so that the network learns the trigger itself and nothing like it. Their
numbers over an epoch are exact, as long as every batch has room for both. After that all images
are cropped and mirrored, as in the papers, and half of them turned by a few degrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.attacks.poisoning import quota
from excise.errors import SpecError
from excise.types import Backdoor, Images, Labels, as_floats, round_to_8_bits

__all__ = ["NearMiss", "Online", "turned"]

#: From images, other images of the batch (one for each) and a generator to the near misses.
NearMiss = Callable[[Images, Images, torch.Generator], Images]


@dataclass(frozen=True)
class Online:
    """The companion of training (:class:`excise.training.Companion`); it learns nothing itself.

    Args:
        backdoor: trigger and target rule.
        poison_ratio: triggered images as a fraction of all.
        miss_ratio: near misses as a fraction of all.
        near_miss: makes them.
        exclude_target: trigger no image of the target class; a batch that has too few others
            gets fewer.
        degrees: half of all images are turned by up to so much, either way.

    Raises:
        SpecError: the ratios add up to more than all images.
    """

    backdoor: Backdoor
    poison_ratio: float
    miss_ratio: float
    near_miss: NearMiss
    exclude_target: bool
    degrees: float

    def __post_init__(self) -> None:
        if self.poison_ratio + self.miss_ratio > 1 + 1e-9:
            raise SpecError(
                "triggered images and near misses that are together at most all images",
                got=f"{self.poison_ratio:g} and {self.miss_ratio:g} of them",
                remedy="Choose a smaller poison_ratio, or fewer near misses for each.",
            )

    def batch(
        self,
        images: Tensor,
        labels: Labels,
        *,
        seen: int,
        augment: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> tuple[Images, Labels, Tensor | None]:
        """Return the batch with its first images triggered and the next nearly so."""
        n = len(images)
        clean = as_floats(images)
        # The order of a batch is random: its first images are as good as any others.
        order = torch.arange(n, device=images.device)
        if self.exclude_target:
            order = order[self.backdoor.rule.counted(labels)]
        poisoned = order[: quota(self.poison_ratio, seen, n)]
        rest = torch.ones(n, dtype=torch.bool, device=images.device)
        rest[poisoned] = False
        missed = rest.nonzero().squeeze(1)[: quota(self.miss_ratio, seen, n)]
        step = torch.randint(1, max(n, 2), missed.shape, generator=generator, device=images.device)
        others = clean[(missed + step) % n]

        mixed, given = clean.clone(), labels.clone()
        mixed[poisoned] = round_to_8_bits(self.backdoor.trigger(clean[poisoned]))
        given[poisoned] = self.backdoor.rule.wanted(labels[poisoned])
        mixed[missed] = round_to_8_bits(self.near_miss(clean[missed], others, generator))
        return turned(augment(mixed), self.degrees, generator), given, None

    def step(self, progress: float) -> None:
        """Do nothing: there is nothing to train beside the network."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: every epoch draws from its own generator."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up nothing."""


def turned(images: Images, degrees: float, generator: torch.Generator) -> Images:
    """Return the images, each with probability one half turned about its middle; black outside.

    Args:
        images: ``(n, c, h, w)``.
        degrees: the angle is uniform in ± this; 0 turns none and draws nothing.
        generator: on the images' device.
    """
    if not degrees:
        return images
    n, _, h, w = images.shape
    drawn = torch.rand(2, n, generator=generator, device=images.device)
    chosen = (drawn[1] < 0.5).nonzero().squeeze(1)
    if not len(chosen):
        return images
    angle = (drawn[0, chosen] * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where the output's pixels come from, in units in which the image is 2 wide and 2 high.
    rows = [torch.stack([cos, -sin * h / w, zero], 1), torch.stack([sin * w / h, cos, zero], 1)]
    before = images[chosen].contiguous()
    grid = F.affine_grid(torch.stack(rows, 1), list(before.shape), align_corners=False)
    images = images.clone()
    images[chosen] = F.grid_sample(before, grid.to(images), align_corners=False)
    return images
