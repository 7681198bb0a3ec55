"""How visible a trigger is: how far triggered images lie from the clean ones.

Sources: SSIM: Wang, Bovik, Sheikh, Simoncelli, IEEE Transactions on Image Processing 2004, in the
implementation of torchmetrics. High-frequency share: :mod:`excise.evaluation.spectrum` (Zeng,
Park, Mao, Jia, ICCV 2021). Both images are rounded to 8 bits, as picture files hold them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from excise.evaluation.spectrum import high_frequency_share
from excise.types import Images, LabelledImages, Trigger, round_to_8_bits

__all__ = ["SSIM_WINDOW", "Visibility", "visibility"]

#: The window whose statistics SSIM compares; images are reflected at their borders.
SSIM_WINDOW = "Gaussian, 11 × 11 pixels, σ 1.5"
_SMALLEST = 6  # half a window is reflected, which takes one pixel more
# Planes handed over as channels of one image: what the depthwise convolution is fastest on.
_PLANES, _PIXELS = 96, 96 * 1024


@dataclass(frozen=True)
class Visibility:
    """How far triggered images lie from clean ones, over ``n`` images.

    Args:
        n: how many images were compared.
        mean_change: mean absolute change of a channel of a pixel, in steps of 1/255.
        pixels_changed: fraction of pixels of which at least one channel changed.
        psnr: peak signal-to-noise ratio in dB, of the mean squared error over all images (so
            images that the trigger happens to leave alone do not make it infinite); None if not
            one value changed.
        ssim: structural similarity, 1 for equal images, averaged over channels and images; its
            window is :data:`SSIM_WINDOW`. None for images smaller than 6 × 6.
        high_frequency_share: share of the changes' energy that lies in high frequencies; None if
            not one value changed.
    """

    n: int
    mean_change: float
    pixels_changed: float
    psnr: float | None
    ssim: float | None
    high_frequency_share: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return asdict(self)


@torch.no_grad()
def visibility(images: LabelledImages, trigger: Trigger, *, batch_size: int = 500) -> Visibility:
    """Return how visible ``trigger`` is on ``images``, all of them, where they lie.

    Args:
        images: clean images of any size; labels do not matter.
        trigger: put on every one of them.
        batch_size: images at a time; changes only speed and memory.
    """
    absolute = squared = changed = similarity = share = 0.0
    touched = 0
    for batch, _ in images.batches(batch_size):
        clean = round_to_8_bits(batch)
        triggered = round_to_8_bits(trigger(batch))
        residual = triggered - clean
        absolute += float(residual.abs().sum(dtype=torch.float64))
        squared += float(residual.square().sum(dtype=torch.float64))
        marked = (residual != 0).any(1)
        changed += float(marked.sum())
        # An image in which nothing changed has no energy to have a share of.
        residual = residual[marked.flatten(1).any(1)]
        touched += len(residual)
        share += float(high_frequency_share(residual).sum(dtype=torch.float64))
        if min(images.shape[1:]) >= _SMALLEST:
            similarity += _ssim_sum(clean, triggered)
    c, h, w = images.shape
    n = len(images)
    error = squared / (n * c * h * w)
    return Visibility(
        n=n,
        mean_change=255 * absolute / (n * c * h * w),
        pixels_changed=changed / (n * h * w),
        psnr=-10 * math.log10(error) if error else None,
        ssim=similarity / (n * c) if min(h, w) >= _SMALLEST else None,
        high_frequency_share=share / touched if touched else None,
    )


def _ssim_sum(clean: Images, triggered: Images) -> float:
    """Return the sum of every plane's SSIM."""
    # Imported here: it brings torchvision and Matplotlib along, seconds that few commands need.
    from torchmetrics.functional.image import structural_similarity_index_measure

    h, w = clean.shape[-2:]
    many = max(1, min(_PLANES, _PIXELS // (h * w)))
    total = 0.0
    for a, b in zip(_planes(clean, many), _planes(triggered, many), strict=True):
        mean: Any = structural_similarity_index_measure(b, a, sigma=1.5, data_range=1.0)
        total += float(mean) * a.shape[1]
    return total


def _planes(images: Images, many: int) -> tuple[Float[Tensor, "1 planes h w"], ...]:
    planes: tuple[Tensor, ...] = images.reshape(1, -1, *images.shape[-2:]).split(many, dim=1)
    return planes
