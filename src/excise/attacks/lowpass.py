"""The low-pass filter S and the rescaling R of the smooth trigger (LF).

Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers, ICCV 2021 (arXiv 2104.03413).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rescale", "smooth"]


def smooth(planes: Tensor, std: float) -> Tensor:
    """Return each plane ``(h, w)`` under S: a separable Gaussian whose taps sum to 1.

    It has 5 · ``std`` taps; around the image all is zero. An even number of taps has no middle
    one: (taps − 1) // 2 of them come before the pixel, so that 30 taps move the picture by half a
    pixel.
    """
    taps = round(5 * std)
    middle = (taps - 1) / 2
    distance = (torch.arange(taps, dtype=torch.float64) - middle) / std
    kernel = torch.exp(-0.5 * distance.square())
    kernel /= kernel.sum()

    def matrix(size: int) -> Tensor:
        # Row p holds the taps that pixel p looks through.
        tap = torch.arange(size) - torch.arange(size)[:, None] + (taps - 1) // 2
        inside = (tap >= 0) & (tap < taps)
        return torch.where(inside, kernel[tap.clamp(0, taps - 1)], 0).to(planes)

    h, w = planes.shape[-2:]
    smoothed: Tensor = matrix(h) @ planes @ matrix(w).T
    return smoothed


def rescale(v: Tensor, amplitude: float) -> Tensor:
    """Return R(v): the smallest of all values becomes 0, the largest ``amplitude``.

    A constant, which has no range to stretch, becomes 0.
    """
    low, high = torch.aminmax(v)
    return (v - low) / (high - low).clamp_min(1e-12) * amplitude
