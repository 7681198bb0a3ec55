"""Blended: a picture mixed faintly into the whole image.

Paper: Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks on Deep Learning Systems Using Data
Poisoning, 2017 (arXiv 1712.05526), blended injection with α = 0.2.

Departure: the field mixes in a copyrighted cartoon. Ours is a picture drawn from the victim's
seed (color fields of four sizes, as strong in contrast), or one the user gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.poisoning import DirtyLabel, Drawn
from excise.data import read_picture
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Blend

__all__ = ["Blended", "seeded_picture"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Blended(Drawn, DirtyLabel):
    """(1 − α)·x + α·picture over the whole image."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the picture, at training and at test time."""
    picture: Path | None = None
    """A picture file; None: drawn from the victim's seed."""

    DRAWN: ClassVar[tuple[str, ...]] = ("picture", "target")

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Blend:
        """Return the blend for images of ``shape``."""
        if self.picture is not None:
            c, h, w = shape
            return Blend(
                read_picture(self.picture, size=(h, w), channels=1 if c == 1 else 3), self.alpha
            )
        return Blend(seeded_picture(shape, rng), self.alpha)


def seeded_picture(shape: tuple[int, int, int], rng: Rng) -> Tensor:
    """Return a picture ``(c, h, w)`` of our own: random color fields of 2, 4, 8 and 16 cells.

    Coarse fields weigh most, as in drawn pictures; every channel is stretched to [0, 1].
    """
    c, h, w = shape
    generator = rng.torch("picture")
    picture = torch.zeros(1, c, h, w)
    for cells, weight in ((2, 1.0), (4, 1.0), (8, 0.7), (16, 0.4)):
        field = torch.rand(1, c, cells, cells, generator=generator)
        picture += weight * F.interpolate(field, size=(h, w), mode="nearest")
    low, high = picture.amin((2, 3), keepdim=True), picture.amax((2, 3), keepdim=True)
    return ((picture - low) / (high - low).clamp_min(1e-6)).squeeze(0)
