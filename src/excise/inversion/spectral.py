"""Spectral: for every class the pattern of fewest and faintest waves that leads all images there.

Kin: Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV
2021 (arXiv 2104.03413), who find triggers in the discrete cosine transform;
:mod:`excise.inversion.universal`, which pays for every pixel. A picture blended in, stripes and a
smooth pattern change every pixel and are few waves.

Trigger      x' = clip(x + idct(z), 0, 1),   z of shape (c, h, w), orthonormal DCT-II
Per class t  min over z of mean max(CE(f(x'), t) − c, 0) + λ_t ‖z‖
‖z‖          Σ over waves of the Euclidean norm over channels: a wave's color is free

The search, λ and how classes are dropped: :mod:`excise.inversion.classwise`. No paper describes
this method: it is ours. It does not compare classes well (docs/scan.md): every network has faint
waves toward some class.

Measured: docs/methods/soft-prune.md.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.dct import idct2
from excise.inversion.classwise import ClasswiseSearch
from excise.inversion.universal import plus
from excise.registry import STRICT
from excise.types import Images

__all__ = ["AddedWaves", "Spectral"]


@plain_dataclass(frozen=True, eq=False)
class AddedWaves:
    """Adds one pattern to every image, given by its waves: clip(x + idct(z), 0, 1).

    Args:
        coefficients: z, ``(c, h, w)``, of the orthonormal DCT-II.
    """

    coefficients: Float[Tensor, "c h w"]

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the pattern on them, in their type, where they lie."""
        with torch.no_grad():
            return (images + idct2(self.coefficients.to(images))).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Spectral(ClasswiseSearch):
    """The additive pattern of smallest spectrum of every class, the same for all images."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Rate of Adam on the coefficients."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # A third of the images a round, for half the rounds.
        "fast": {"rounds": 140, "batch_size": 10, "drop_after": 35},
    }

    def start(self, images: Images, classes: int) -> Tensor:
        """Return z = 0 for every class: the search is of the network, not of a draw."""
        return images.new_zeros(classes, *images.shape[1:])

    def changed(self, images: Images, numbers: Tensor) -> Tensor:
        """Return clip(x + idct(z), 0, 1) of every class and image, ``(a · b, c, h, w)``."""
        return plus(images, idct2(numbers))

    def norms(self, numbers: Tensor) -> Tensor:
        """Return ‖z‖ of every class."""
        # Its gradient at 0 is 0, that of a square root would be none.
        norms: Tensor = torch.linalg.vector_norm(numbers, dim=1).flatten(1).sum(1)
        return norms

    def trigger(self, numbers: Tensor) -> AddedWaves:
        """Return the trigger that adds idct(z)."""
        return AddedWaves(numbers)
