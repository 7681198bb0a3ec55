"""Universal: for every class the smallest pattern that, added to any image, leads there.

Kin: Moosavi-Dezfooli, Fawzi, Fawzi, Frossard: Universal Adversarial Perturbations, CVPR 2017
(arXiv 1610.08401), which no class has to be reached by; Wang et al.: Neural Cleanse, S&P 2019,
whose mask and pattern cannot be faint and wide at once without paying for every pixel.

Trigger      x' = clip(x + v, 0, 1),   v of shape (c, h, w)
Per class t  min over v of mean max(CE(f(x'), t) − c, 0) + λ_t ‖v‖
‖v‖          Σ|v|, or Σv²: a pattern all over the image is cheaper by squares, a patch by the sum

The search, λ and how classes are dropped: :mod:`excise.inversion.classwise`. No paper describes
this method: it is ours.

Measured: docs/defenses.md.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.inversion.classwise import ClasswiseSearch
from excise.registry import STRICT
from excise.types import Images

__all__ = ["Added", "Universal", "plus"]


@plain_dataclass(frozen=True, eq=False)
class Added:
    """Adds one pattern to every image: clip(x + v, 0, 1).

    Args:
        pattern: v, ``(c, h, w)``.
    """

    pattern: Float[Tensor, "c h w"]

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the pattern on them, in their type, where they lie."""
        with torch.no_grad():
            return (images + self.pattern.to(images)).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Universal(ClasswiseSearch):
    """The smallest additive perturbation of every class, the same for all images."""

    norm: Literal["sum", "squares"] = "sum"
    """What λ weighs: the sum of absolute values or of squares."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # A third of the images a round, for half the rounds.
        "fast": {"rounds": 140, "batch_size": 10, "drop_after": 35, "learning_rate": 0.02},
    }

    def start(self, images: Images, classes: int) -> Tensor:
        """Return v = 0 for every class: the search is of the network, not of a draw."""
        return images.new_zeros(classes, *images.shape[1:])

    def changed(self, images: Images, numbers: Tensor) -> Tensor:
        """Return clip(x + v, 0, 1) of every class and image, ``(a · b, c, h, w)``."""
        return plus(images, numbers)

    def norms(self, numbers: Tensor) -> Tensor:
        """Return ‖v‖ of every class."""
        flat = numbers.flatten(1)
        return flat.abs().sum(1) if self.norm == "sum" else flat.square().sum(1)

    def trigger(self, numbers: Tensor) -> Added:
        """Return the trigger that adds v."""
        return Added(numbers)


def plus(images: Images, patterns: Float[Tensor, "a c h w"]) -> Float[Tensor, "ab c h w"]:
    """Return clip(x + v, 0, 1) of every pattern and image, the images of a pattern side by side."""
    x = (images[None] + patterns[:, None]).flatten(0, 1)
    # Not clamp, whose gradient is 0 at 0 and 1 too: a black or a white pixel would never move.
    return x.masked_fill(x < 0, 0).masked_fill(x > 1, 1)
