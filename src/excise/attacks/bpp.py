"""BppAttack: images in few colors, against images with the same errors in the wrong place.

Paper: Wang, Zhai, Ma: BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural
Networks via Image Quantization and Contrastive Adversarial Learning, CVPR 2022 (arXiv 2205.13383);
negatives x + q(x′) − x′ under their true label.

Departures:

* A tenth of the images is triggered and a tenth negative, as in the field (the authors' script:
  a fifth each), exactly over an epoch rather than rounded down in each batch.
* A negative's error is another image's of the same batch (the script: drawn from a list made
  before training). Triggered images are rounded to 8 bits, as they are at test time.
* Cropping is the recipe's; half of the images, each by a coin of its own, are turned (the script
  tosses one coin a batch).
* Dithering is off, as in the authors' script; the paper describes it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.online import Online
from excise.attacks.poisoning import DirtyLabel, Drawn
from excise.attacks.workshop import Workshop
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Companion
from excise.triggers import Quantize
from excise.types import Backdoor, Images

__all__ = ["Bpp"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bpp(Drawn, DirtyLabel):
    """Few gray levels in every channel, put on anew in every batch."""

    levels: Annotated[int, Field(ge=2, le=255)] = 8
    """Gray levels a channel keeps, from 2 to 255 (the authors' ``squeeze_num``)."""
    dither: bool = False
    """Floyd–Steinberg: carry each pixel's rounding error on to its neighbors."""
    negative_ratio: Annotated[float, Field(ge=0)] = 1.0
    """Negatives for each triggered image; 0: none."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Half of the training images are turned by up to so many degrees; 0: none."""

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Quantize:
        """Return the quantization; nothing of it is drawn."""
        return Quantize(self.levels, self.dither)

    def companion(self, workshop: Workshop, backdoor: Backdoor) -> Companion:
        """Return what triggers images in every batch.

        Raises:
            SpecError: triggered and negative images would be more than all.
        """

        def negative(images: Images, others: Images, generator: torch.Generator) -> Images:
            return images + (backdoor.trigger(others) - others)

        return Online(
            backdoor, self.poison_ratio, self.poison_ratio * self.negative_ratio, negative,
            self.exclude_target, self.rotation,
        )  # fmt: skip
