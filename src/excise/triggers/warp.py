"""The warping trigger: every pixel is taken from a little beside its place.

Nguyen, Tran: WaNet – Imperceptible Warping-based Backdoor Attack, ICLR 2021 (arXiv 2102.10369).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from excise.errors import TriggerError
from excise.types import Images

__all__ = ["Warp"]


@dataclass(frozen=True, eq=False)
class Warp:
    """Warps every image by one smooth field, bilinearly; at the edges nothing comes from outside.

    Args:
        flow: ``(2, h, w)``: how far to the right and how far below its place each pixel is taken
            from, where the image is 2 wide and 2 high (:func:`torch.nn.functional.grid_sample`).

    Raises:
        TriggerError: a field of another shape, or not finite.
    """

    flow: Float[Tensor, "2 h w"]

    def __post_init__(self) -> None:
        flow = self.flow
        fits = flow.ndim == 3 and len(flow) == 2 and flow.numel() > 0 and flow.is_floating_point()
        if not (fits and flow.isfinite().all()):
            raise TriggerError(
                "a flow of shape (2, h, w) of finite floats",
                got=f"{flow.dtype} of shape {tuple(flow.shape)}",
                remedy="Give the displacement to the right, then the one downward.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images warped.

        Raises:
            TriggerError: the field has another size than the images.
        """
        if self.flow.shape[1:] != images.shape[2:]:
            raise TriggerError(
                f"a flow for images of {images.shape[2]} × {images.shape[3]} pixels",
                got=f"{self.flow.shape[1]} × {self.flow.shape[2]}",
                remedy="Make the trigger for images of this size.",
            )
        return _sample(images, self.grid(images).expand(len(images), -1, -1, -1))

    def noisy(self, images: Images, generator: torch.Generator) -> Images:
        """Return the images warped by the field and noise: what WaNet's noise mode trains on.

        Every pixel of every image is taken from up to half a pixel farther off, uniformly.

        Args:
            images: of the field's size.
            generator: on the images' device.
        """
        n, _, h, w = images.shape
        noise = torch.rand(n, h, w, 2, generator=generator, device=images.device) * 2 - 1
        noise /= torch.tensor([w, h], device=images.device)
        return _sample(images, (self.grid(images) + noise.to(images)).clamp_(-1, 1))

    def grid(self, like: Images) -> Tensor:
        """Return where each pixel is taken from, ``(1, h, w, 2)`` in [-1, 1]: right, then down."""
        _, h, w = self.flow.shape
        right, down = (torch.linspace(-1, 1, size).to(like) for size in (w, h))
        place = torch.stack([right.expand(h, w), down[:, None].expand(h, w)])
        return (place + self.flow.to(like)).clamp_(-1, 1).permute(1, 2, 0)[None]


def _sample(images: Images, grid: Tensor) -> Images:
    # Contiguous, since the method chosen for other layouts differs in the last bit; clamped, since
    # four weights may add up to a little more than 1.
    return F.grid_sample(images.contiguous(), grid, align_corners=True).clamp_(0, 1)
