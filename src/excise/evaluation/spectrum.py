"""DCT spectra of images, and how much of their energy lies in high frequencies.

Source: Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective,
ICCV 2021 (arXiv 2104.03413). DC stands top left.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from excise.dct import dct2
from excise.types import Images

__all__ = ["high_frequencies", "high_frequency_share", "mean_magnitude"]


def high_frequencies(height: int, width: int) -> Bool[Tensor, "h w"]:
    """Return which coefficients count as high: those below the diagonal from corner to corner.

    With row u and column v counted from 0: u / (height − 1) + v / (width − 1) > 1.
    """
    rows = torch.linspace(0, 1, height, dtype=torch.float64)
    columns = torch.linspace(0, 1, width, dtype=torch.float64)
    return rows[:, None] + columns > 1 + 1e-9


def high_frequency_share(images: Images) -> Float[Tensor, " n"]:
    """Return for each image which share of its energy lies in high frequencies; NaN without any.

    Images that are not zero but a constant have all their energy in DC: share 0.
    """
    energy = dct2(images).square().sum(1)
    high = high_frequencies(*images.shape[-2:]).to(images.device)
    return (energy * high).sum((-2, -1)) / energy.sum((-2, -1))


def mean_magnitude(images: Images) -> Float[Tensor, "h w"]:
    """Return the mean magnitude of each coefficient over images and channels, of values 0 to 255.

    Pictures of it show log₁₀(1 + magnitude).
    """
    return dct2(255 * images).abs().mean((0, 1))
