"""The FTrojan trigger: a middle and the highest frequency of the chroma channels are raised.

Wang, Yao, Xu, An, Tong, Wang: An Invisible Black-Box Backdoor Attack Through Frequency Domain,
ECCV 2022 (arXiv 2111.10991): RGB → YCrCb, orthonormal DCT of each 32 × 32 window, ``magnitude``
added to the coefficients (15, 15) and (31, 31) of Cr and Cb, and all the way back.

Departures:

* The published code cuts off fractions on the way back, so that round-off takes one gray value
  from half of all pixels and luma changes too: on CIFAR-10 that is 1.2 of the 1.9 gray values it
  changes a pixel by on average. Here nothing is rounded in between and what comes out is clipped.
  Every step is then linear, and the trigger is one and the same picture added to every image
  (1.5 gray values on average; 32 × 32: up to 4 of red, 6 of blue).
* An image smaller than the window in height or width is one window there, whose middle and
  highest frequencies are raised. What is left beside whole windows at the right and lower edge
  stays as it is (the published code fails at both).
* Gray images have no chroma: the frequencies are those of gray itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from excise.dct import idct2
from excise.errors import TriggerError
from excise.types import Images

__all__ = ["FTrojan", "rgb_of_chroma"]

_LEAST = 4


@dataclass(frozen=True, eq=False)
class FTrojan:
    """Raises two frequencies of the chroma channels, window by window, and clips.

    Args:
        magnitude: what is added to an orthonormal DCT coefficient of gray values of 255; above 0.
        window: side of a window in pixels, 4 or more; the published one is 32.

    Raises:
        TriggerError: a magnitude or a window that is none.
    """

    magnitude: float
    window: int

    def __post_init__(self) -> None:
        # Written so that NaN, which compares false with everything, is refused as well.
        if not (isinstance(self.magnitude, int | float) and 0 < self.magnitude <= 255 * 32):
            raise TriggerError(
                f"a magnitude above 0 and at most {255 * 32}",
                got=repr(self.magnitude),
                remedy="It is added to coefficients of gray values of 255; the published is 30.",
            )
        if not (isinstance(self.window, int) and self.window >= _LEAST):
            raise TriggerError(
                f"a window of {_LEAST} pixels or more",
                got=repr(self.window),
                remedy="Smaller ones have no middle frequency; the published is 32.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the frequencies raised.

        Raises:
            TriggerError: images neither gray nor RGB, or too small to have a middle frequency.
        """
        c, h, w = images.shape[1:]
        if c not in (1, 3) or min(h, w) < _LEAST:
            raise TriggerError(
                f"gray or RGB images of at least {_LEAST} × {_LEAST} pixels",
                got=f"{c} channels of {h} × {w}",
                remedy="Convert or enlarge the images.",
            )
        return (images + (self.picture(c, h, w) / 255).to(images)).clamp_(0, 1)

    def picture(self, channels: int, height: int, width: int) -> Tensor:
        """Return what is added to every image ``(c, h, w)``, in gray values of 255.

        Raising coefficients of an image adds the picture that has these and no others.
        """
        h, w = min(self.window, height), min(self.window, width)
        raised = torch.zeros(h, w, dtype=torch.float64)
        raised[h // 2 - 1, w // 2 - 1] = raised[h - 1, w - 1] = self.magnitude
        windows = idct2(raised).tile(height // h, width // w)
        plane = torch.zeros(height, width, dtype=torch.float64)
        plane[: windows.shape[0], : windows.shape[1]] = windows
        return plane[None] if channels == 1 else rgb_of_chroma(plane, plane)


def rgb_of_chroma(cr: Tensor, cb: Tensor) -> Tensor:
    """Return the change of red, green and blue that changes the chroma by so much, luma by nothing.

    Y = 0.299 R + 0.587 G + 0.114 B, Cr = 0.713 (R − Y) + ½, Cb = 0.564 (B − Y) + ½, solved for RGB.

    Args:
        cr: change of the red chroma ``(h, w)``.
        cb: change of the blue chroma, likewise.
    """
    red, blue = cr / 0.713, cb / 0.564
    return torch.stack([red, -(0.299 * red + 0.114 * blue) / 0.587, blue])
