"""Spatial: for every class the smallest smooth warp that sends all images there.

Kin: Nguyen, Tran: WaNet, ICLR 2021 (arXiv 2102.10369), whose field is made as this one; Xiao, Zhu,
Li, He, Liu, Song: Spatially Transformed Adversarial Examples, ICLR 2018 (arXiv 1801.02612), who
move every pixel of one image on its own.

Trigger      x'(p) = x(p + u(p)), bilinearly;   u: a (2, k, k) grid of numbers in pixels,
             bicubically drawn to (2, h, w); nothing comes from outside the image
Per class t  min over the grid of mean max(CE(f(x'), t) − c, 0) + λ_t · mean |grid|

WaNet of strength s has a grid of mean |·| s (w − 1) / (2 h), about s / 2 pixels. The search, λ and
how classes are dropped: :mod:`excise.inversion.classwise`. No paper describes this method: it is
ours.

Measured: docs/defenses.md.
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
from excise.registry import STRICT
from excise.types import Images

__all__ = ["Spatial", "Warped", "warped"]


@plain_dataclass(frozen=True, eq=False)
class Warped:
    """Takes every pixel from a little beside its place, the same for all images.

    Args:
        points: ``(2, k, k)``: how far to the right and how far below, in pixels, on a coarse grid
            whose corners are the image's.
    """

    points: Float[Tensor, "2 k k"]

    def __call__(self, images: Images, /) -> Images:
        """Return the images warped, in their type, where they lie."""
        with torch.no_grad():
            # Clamped, since four weights may add up to a little more than 1. Not where gradients
            # are taken: those of a clamp are 0 at black and white pixels.
            return warped(images, self.points.to(images)[None]).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spatial(ClasswiseSearch):
    """The smallest smooth warp of every class, the same for all images."""

    grid: Annotated[int, Field(ge=2)] = 4
    """k: the field has k × k points of two numbers; WaNet's has 4 × 4."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Rate of Adam on the grid, in pixels."""
    penalty: Annotated[float, Field(gt=0)] = 0.1
    """λ: weight of mean |grid| once ``patience`` rounds in a row succeeded; 0 before."""
    success_rate: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A round succeeds from this share of images on, averaged over the last rounds."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # A third of the images a round, for half the rounds.
        "fast": {"rounds": 140, "batch_size": 10, "drop_after": 35, "learning_rate": 0.2},
    }

    def start(self, images: Images, classes: int) -> Tensor:
        """Return a grid of zeros for every class: no pixel moves."""
        return images.new_zeros(classes, 2, self.grid, self.grid)

    def changed(self, images: Images, numbers: Tensor) -> Tensor:
        """Return every image under every class's warp, ``(a · b, c, h, w)``."""
        return warped(images.repeat(len(numbers), 1, 1, 1), numbers)

    def norms(self, numbers: Tensor) -> Tensor:
        """Return mean |grid| of every class, in pixels."""
        return numbers.flatten(1).abs().mean(1)

    def trigger(self, numbers: Tensor) -> Warped:
        """Return the trigger that warps by a grid."""
        return Warped(numbers)


def warped(images: Images, points: Float[Tensor, "a 2 k k"]) -> Images:
    """Return images ``(a · b, c, h, w)`` warped, the first b of them by the first grid."""
    h, w = images.shape[2:]
    flow = F.interpolate(points, size=(h, w), mode="bicubic", align_corners=True)
    right, down = (torch.linspace(-1, 1, size).to(images) for size in (w, h))
    place = torch.stack([right.expand(h, w), down[:, None].expand(h, w)])
    pixel = images.new_tensor([2 / max(1, w - 1), 2 / max(1, h - 1)])[:, None, None]
    grid = (place + flow * pixel).clamp(-1, 1).permute(0, 2, 3, 1)  # (a, h, w, 2)
    grid = grid.repeat_interleave(len(images) // len(points), 0)
    # Contiguous, since the method chosen for other layouts differs in the last bit.
    return F.grid_sample(images.contiguous(), grid, align_corners=True)
