"""Smooth: for every class the smallest smooth pattern that, added to any image, leads there.

Kin: Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV
2021, section 5, whose trigger is smooth; :mod:`excise.inversion.universal`, which pays for every
pixel of it and finds something else.

Trigger      x' = clip(x + ↑z, 0, 1),   z of shape (c, g, g), ↑ bicubic interpolation to the image
Per class t  min over z of mean max(CE(f(x'), t) − c, 0) + λ_t · 16 Σ|z|
16           each number of an 8 × 8 grid stands for so many pixels of a 32 × 32 image

The search, λ and how classes are dropped: :mod:`excise.inversion.classwise`. No paper describes
this method: it is ours.

Measured: docs/scan.md.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.inversion.classwise import ClasswiseSearch
from excise.inversion.universal import plus
from excise.registry import STRICT
from excise.types import Images

__all__ = ["AddedSmooth", "Smooth"]


@plain_dataclass(frozen=True, eq=False)
class AddedSmooth:
    """Adds one smooth pattern to every image: clip(x + ↑z, 0, 1).

    Args:
        grid: z, ``(c, g, g)``.
    """

    grid: Float[Tensor, "c g g"]

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the pattern on them, in their type, where they lie."""
        with torch.no_grad():
            pattern = stretched(self.grid[None].to(images), images)
            return (images + pattern).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Smooth(ClasswiseSearch):
    """The smallest smooth additive perturbation of every class, the same for all images."""

    grid: Annotated[int, Field(ge=2)] = 8
    """g: numbers along each side of a pattern; at most half as many as pixels."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"rounds": 140, "batch_size": 10, "drop_after": 35, "learning_rate": 0.02},
    }

    def start(self, images: Images, classes: int) -> Tensor:
        """Return z = 0 for every class: the search is of the network, not of a draw."""
        side = max(2, min(self.grid, *(length // 2 for length in images.shape[2:])))
        return images.new_zeros(classes, images.shape[1], side, side)

    def changed(self, images: Images, numbers: Tensor) -> Tensor:
        """Return clip(x + ↑z, 0, 1) of every class and image, ``(a · b, c, h, w)``."""
        return plus(images, stretched(numbers, images))

    def norms(self, numbers: Tensor) -> Tensor:
        """Return 16 Σ|z| of every class."""
        return 16 * numbers.flatten(1).abs().sum(1)

    def trigger(self, numbers: Tensor) -> AddedSmooth:
        """Return the trigger that adds ↑z."""
        return AddedSmooth(numbers)


def stretched(grids: Float[Tensor, "a c g g"], images: Images) -> Float[Tensor, "a c h w"]:
    """Return the patterns of some grids, as large as the images."""
    return F.interpolate(grids, size=images.shape[2:], mode="bicubic", align_corners=False)
