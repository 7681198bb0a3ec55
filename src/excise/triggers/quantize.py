"""The quantization trigger: every channel keeps few gray levels, perhaps dithered.

Wang, Zhai, Ma: BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via
Image Quantization and Contrastive Adversarial Learning, CVPR 2022 (arXiv 2205.13383): fewer bits
a channel, Floyd–Steinberg dithering.

Departure: dithered levels stay among the given ones; in the published code the error carried to a
bright pixel may lift it above white.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import TriggerError
from excise.types import Images

__all__ = ["Quantize"]


@dataclass(frozen=True, eq=False)
class Quantize:
    """Rounds every pixel to the nearest of ``levels`` gray levels from black to white.

    Args:
        levels: how many, from 2 to 255; the published 8 is 3 bits a channel.
        dither: carry each pixel's rounding error on to its neighbors (Floyd–Steinberg).

    Raises:
        TriggerError: a number of levels that leaves nothing or everything as it is.
    """

    levels: int
    dither: bool

    def __post_init__(self) -> None:
        if not (isinstance(self.levels, int) and 2 <= self.levels <= 255):
            raise TriggerError(
                "2 to 255 levels",
                got=repr(self.levels),
                remedy="256 would leave an 8-bit image as it is; the published number is 8.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images in few levels."""
        if self.dither:
            return _floyd_steinberg(images, self.levels - 1)
        return _nearest(images, self.levels - 1)


def _nearest(values: Tensor, steps: int) -> Tensor:
    return values.mul(steps).round_().clamp_(0, steps).div_(steps)


def _floyd_steinberg(images: Images, steps: int) -> Images:
    """Return the images dithered: errors go 7/16 right, 3/16, 5/16 and 1/16 to the row below.

    A pixel (y, x) needs its neighbors (y, x − 1) and (y − 1, x − 1 … x + 1) done. With t = x + 2y
    these have t − 1, t − 3, t − 2 and t − 1: all pixels of one t are done at once, for all images
    and channels, in w + 2(h − 1) steps instead of h · w.
    """
    n, c, h, w = images.shape
    # Pixels first: what one step reads and writes lies together.
    pixels = images.permute(2, 3, 0, 1).reshape(h, w, n * c).clone()
    # Errors of the last three t by row, below a row of zeros that stands above the first.
    past = [torch.zeros(h + 1, n * c, dtype=images.dtype, device=images.device) for _ in range(3)]
    rows = torch.arange(h, device=images.device)
    for t in range(w + 2 * (h - 1)):
        first, last = max(0, (t - w) // 2 + 1), min(h, t // 2 + 1)
        y = rows[first:last]
        x = t - 2 * y
        above = slice(first, last)
        wanted = pixels[y, x]
        wanted += past[0][first + 1 : last + 1] * 0.4375
        wanted += past[0][above] * 0.1875
        wanted += past[1][above] * 0.3125
        wanted += past[2][above] * 0.0625
        kept = _nearest(wanted, steps)
        pixels[y, x] = kept
        errors = past.pop().zero_()
        errors[first + 1 : last + 1] = wanted - kept
        past.insert(0, errors)
    return pixels.view(h, w, n, c).permute(2, 3, 0, 1).contiguous()
