"""The additive trigger: clip(x + v), one perturbation for every image.

Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers, ICCV 2021 (arXiv 2104.03413),
where v is smooth (LF); Liu et al.: Trojaning Attack on Neural Networks, NDSS 2018, where v is a
patch; Turner, Tsipras, Madry (arXiv 1912.02771), where v blackens and whitens pixels in corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from excise.errors import TriggerError
from excise.types import Images


@dataclass(frozen=True, eq=False)
class Additive:
    """Adds a perturbation to every image and clips to [0, 1].

    Args:
        perturbation: ``(c, h, w)`` of the images' size, in the units of [0, 1] images: 1 takes
            black to white, −1 white to black.

    Raises:
        TriggerError: values outside [-1, 1] (as of a perturbation in 8-bit units), or so small
            that no picture file would carry them.
    """

    perturbation: Float[Tensor, "c h w"]

    def __post_init__(self) -> None:
        v = self.perturbation
        fits = v.ndim == 3 and v.numel() > 0 and v.is_floating_point()
        got = f"{v.dtype} of shape {tuple(v.shape)}"
        if fits:
            low, high = (float(value) for value in torch.aminmax(v))
            # Written so that NaN, which compares false with everything, is refused as well.
            fits = low >= -1 and high <= 1
            got = f"values in [{low:.4g}, {high:.4g}]"
        if not fits:
            raise TriggerError(
                "a perturbation of shape (c, h, w) with float values in [-1, 1]",
                got=got,
                remedy="Divide one in 8-bit units by 255; channels come first.",
            )
        if max(-low, high) < 1 / 255:
            raise TriggerError(
                "a perturbation of 1/255 at least somewhere, or no 8-bit pixel would change",
                got=got,
                remedy="Was one in [0, 1] divided by 255? Give it in the units of [0, 1] images.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the perturbation added.

        Raises:
            TriggerError: the perturbation has another size than the images.
        """
        if self.perturbation.shape != images.shape[1:]:
            raise TriggerError(
                f"a perturbation of the images' shape {tuple(images.shape[1:])}",
                got=str(tuple(self.perturbation.shape)),
                remedy="Make the trigger for images of this size and color.",
            )
        return (images + self.perturbation.to(images)).clamp_(0, 1)
