"""The sinusoidal trigger: clip(x + Δ·sin(2πjf/w)), the same in every row and channel.

Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption without Label
Poisoning, ICIP 2019 (arXiv 1902.11237): the sinusoidal signal, j the column, w the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.errors import TriggerError
from excise.types import Images

__all__ = ["Sinusoid"]


@dataclass(frozen=True, eq=False)
class Sinusoid:
    """Adds vertical stripes to every image and clips.

    Args:
        delta: height of the wave in gray values of 255, above 0; the field's is 40.
        frequency: waves over the width of the image, above 0; the field's is 6.

    Raises:
        TriggerError: a height or a frequency that is none.
    """

    delta: float
    frequency: float

    def __post_init__(self) -> None:
        # Written so that NaN, which compares false with everything, is refused as well.
        if not (isinstance(self.delta, int | float) and 0 < self.delta <= 255):
            raise TriggerError(
                "delta above 0 and at most 255",
                got=repr(self.delta),
                remedy="It counts gray values; the field's is 40.",
            )
        if not (isinstance(self.frequency, int | float) and 0 < self.frequency < math.inf):
            raise TriggerError(
                "a frequency above 0",
                got=repr(self.frequency),
                remedy="It counts waves over the image's width; the field's is 6.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the stripes on them.

        Raises:
            TriggerError: sampled at the images' columns, the wave is zero everywhere.
        """
        wave = self.wave(images.shape[-1])
        if wave.abs().max() < 0.5:
            raise TriggerError(
                f"a wave that changes some pixel of an image {len(wave)} wide",
                got=f"delta {self.delta:g} and frequency {self.frequency:g}, which is zero at "
                "every column",
                remedy="Choose a frequency that is no multiple of half the width.",
            )
        return (images + (wave / 255).to(images)).clamp_(0, 1)

    def wave(self, width: int) -> Tensor:
        """Return what is added to each of ``width`` columns, in gray values of 255."""
        columns = torch.arange(width, dtype=torch.float64)
        return self.delta * torch.sin(2 * torch.pi * columns * self.frequency / width)
