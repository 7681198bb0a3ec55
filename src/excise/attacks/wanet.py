"""WaNet: a smooth warp that no eye sees, against noisy ones that must not count.

Paper: Nguyen, Tran: WaNet – Imperceptible Warping-based Backdoor Attack, ICLR 2021 (arXiv
2102.10369), with its noise mode.

Departures:

* The ratios are kept exactly over an epoch; the authors' script rounds them down in each batch.
* On images that are not square, the field moves pixels equally far in both directions.
* Cropping is the recipe's (the script's has padding 5, four batches of five); half of the images,
  each by a coin of its own, are turned (the script tosses one coin a batch). Triggered images are
  rounded to 8 bits, as they are at test time.
* All-to-all relabels y to y + 1, as the paper says; the released script forgets to add the 1.

It takes many steps: on CIFAR-10 (width 16, 25,000 images, recipe ``fast``) ASR is 88 % after 27
epochs and 88.7 % after 40; on 7,140 images of GTSRB it is 94.9 % after 22,300 steps, 53.6 % after
8,920 (and no higher on the training images themselves), 4.1 % after 2,240 (docs/zoo.md).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.online import Online
from excise.attacks.poisoning import DirtyLabel, Drawn
from excise.attacks.workshop import Workshop
from excise.errors import TriggerError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Companion
from excise.triggers import Warp
from excise.types import Backdoor, Images

__all__ = ["WaNet"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WaNet(Drawn, DirtyLabel):
    """A warping field drawn from the seed, put on anew in every batch."""

    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    """The paper's s: pixels are moved by half of it on average (0.25 pixels)."""
    grid_size: Annotated[int, Field(ge=2)] = 4
    """The paper's k: the field is drawn at k × k points and smoothed in between."""
    cross_ratio: Annotated[float, Field(ge=0)] = 2.0
    """Images warped with noise, under their own label, for each triggered image; 0: none."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Half of the training images are turned by up to so many degrees; 0: none."""

    DRAWN: ClassVar[tuple[str, ...] | None] = None

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Warp:
        """Return a warp drawn from ``rng``, for images of ``shape``.

        Raises:
            TriggerError: the images have fewer pixels than the field has points.
        """
        _, h, w = shape
        k = self.grid_size
        if k > min(h, w):
            raise TriggerError(
                f"a field of at most {min(h, w)} × {min(h, w)} points for {h} × {w} pixels",
                got=f"{k} × {k}",
                remedy=f"Choose a grid_size of at most {min(h, w)}, or larger images.",
            )
        points = torch.rand(1, 2, k, k, generator=rng.torch("flow")) * 2 - 1
        points /= points.abs().mean()
        smooth = F.interpolate(points, size=(h, w), mode="bicubic", align_corners=True)[0]
        return Warp(self.strength * smooth / torch.tensor([w, h])[:, None, None])

    def companion(self, workshop: Workshop, backdoor: Backdoor) -> Companion:
        """Return what warps images in every batch.

        Raises:
            SpecError: warped and noisily warped images would be more than all.
        """
        warp = backdoor.trigger
        assert isinstance(warp, Warp)

        def noisy(images: Images, others: Images, generator: torch.Generator) -> Images:
            return warp.noisy(images, generator)

        return Online(
            backdoor, self.poison_ratio, self.poison_ratio * self.cross_ratio, noisy,
            self.exclude_target, self.rotation,
        )  # fmt: skip
