"""Synthetic artifacts: what a detector of triggers is taught with, made from clean images alone.

Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021
(arXiv 2104.03413), §4, and ``Train_Detection.ipynb`` of its repository. Five families, one drawn
for each image: a white block, a block of random colors, Gaussian noise, a random shadow, another
image added faintly. Noise and shadow are those of albumentations 0.4.5, which the notebook calls.

Departures from the notebook and why:

* It makes one image at a time in a Python loop; here a family makes all its images at once.
* Its numbers of pixels are for 32 × 32. On larger images blocks and margins grow with the sides; on
  smaller ones a block has at most half of each side, and the margin what is left.
* albumentations converts to 8-bit HLS to halve the lightness of a shadow; here it is exact.

``smooth`` is ours. The paper fine-tunes its detector on smooth triggers of its own attack; here
smooth patterns are drawn at random, so that no attack's trigger has to be known.

Every family takes float images ``(n, c, h, w)`` in [0, 1], the pool of clean images, and a
generator on their device; it returns new images in [0, 1] and leaves what it was given as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from excise.types import Images, as_floats, round_to_8_bits

__all__ = [
    "FAMILIES",
    "SMOOTH",
    "color_block",
    "make",
    "noise",
    "overlay",
    "shadow",
    "smooth",
    "white_block",
]

Family = Callable[[Images, Tensor, torch.Generator], Images]
#: Images made at once: bounds the memory that a shadow's polygons take.
_CHUNK_VALUES = 1 << 21
#: The side of the images that the notebook's numbers of pixels are for.
_SIDE = 32


def white_block(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with a white block of 2 to 7 pixels a side near one corner."""
    return torch.where(_blocks(images, generator), torch.ones_like(images), images)


def color_block(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with such a block, each of its pixels of a random color."""
    return torch.where(_blocks(images, generator), _uniform(images.shape, generator), images)


def noise(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with Gaussian noise of mean 25 and variance 10 to 70 on the 0–255 scale."""
    deviation = (10 + 60 * _uniform((len(images), 1, 1, 1), generator)).sqrt()
    normal = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + (25 + deviation * normal) / 255).clamp(0, 1)


def shadow(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with one or two random pentagons in the lower half at half the lightness.

    Lightness is that of HLS, (max + min) / 2 of a pixel's channels; hue and saturation stay.
    """
    n, _, h, w = images.shape
    size = torch.tensor([w, h - h // 2], device=images.device)
    drawn = (_uniform((n, 2, 5, 2), generator) * (size + 1)).floor()
    corners = drawn + torch.tensor([0, h // 2], device=images.device)
    both = _uniform((n, 1, 1), generator) < 0.5
    dark = _inside(corners[:, 0], h, w) | (_inside(corners[:, 1], h, w) & both)
    return torch.where(dark[:, None], _darkened(images), images)


def overlay(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with three tenths of another clean image added, clipped."""
    index = torch.randint(len(pool), (len(images),), generator=generator, device=pool.device)
    return (images + 0.3 * as_floats(pool[index])).clamp(0, 1)


def smooth(images: Images, pool: Tensor, generator: torch.Generator) -> Images:
    """Return the images with a random smooth pattern of strength 0.1 to 0.3 added, clipped.

    White noise through the smoothing filter of the paper's attack (Gaussian, deviation 6 pixels at
    32 × 32, zeros outside), scaled to reach from 0 to the strength.
    """
    white = torch.randn(images.shape, generator=generator, device=images.device)
    rows, columns = (_gaussian(size, images.device) for size in images.shape[2:])
    pattern = rows @ white @ columns.T
    low, high = pattern.amin((1, 2, 3), keepdim=True), pattern.amax((1, 2, 3), keepdim=True)
    strength = 0.1 + 0.2 * _uniform((len(images), 1, 1, 1), generator)
    return (images + strength * (pattern - low) / (high - low)).clamp(0, 1)


#: The published five, in the order of the notebook's draw.
FAMILIES: Mapping[str, Family] = {
    "white block": white_block,
    "color block": color_block,
    "noise": noise,
    "shadow": shadow,
    "overlay": overlay,
}
#: These and the smooth one: what fine-tuning on smooth triggers uses.
SMOOTH: Mapping[str, Family] = {**FAMILIES, "smooth": smooth}


def make(
    images: Tensor,
    generator: torch.Generator,
    families: Mapping[str, Family] = FAMILIES,
    *,
    pool: Tensor | None = None,
) -> Tensor:
    """Return every image with an artifact, as 8-bit images; the family of each is drawn uniformly.

    Args:
        images: ``(n, c, h, w)``, 8-bit or float in [0, 1], at least 8 pixels a side.
        generator: on the images' device.
        families: what to draw from.
        pool: clean images that ``overlay`` takes; the given ones if None.
    """
    pool = images if pool is None else pool
    size = max(1, _CHUNK_VALUES // images[0].numel()) if len(images) else 1
    made = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), size):
        part = as_floats(images[start : start + size])
        drawn = torch.randint(len(families), (len(part),), generator=generator, device=part.device)
        for number, family in enumerate(families.values()):
            own = (drawn == number).nonzero().flatten()
            result = round_to_8_bits(family(part[own], pool, generator))
            made[start + own] = result.mul_(255).round_().to(torch.uint8)
    return made


def _uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _blocks(images: Images, generator: torch.Generator) -> Bool[Tensor, "n 1 h w"]:
    """Return where the block of each image lies: one corner, one margin to both its edges."""
    h, w = images.shape[2:]
    margin = (_uniform((len(images),), generator) * 6).floor()
    rows, columns = (_span(size, margin, generator) for size in (h, w))
    return rows[:, None, :, None] & columns[:, None, None, :]


def _span(size: int, margin: Tensor, generator: torch.Generator) -> Bool[Tensor, "n size"]:
    """Return which lines of ``size`` a block covers: 2 to 7 of them, ``margin`` from an edge."""
    scale = max(1.0, size / _SIDE)
    drawn = (_uniform(margin.shape, generator) * 6).floor() + 2
    length = (drawn * scale).round().clamp(max=size // 2)
    first = torch.minimum((margin * scale).round(), size - length)
    far = _uniform(margin.shape, generator) < 0.5
    first = torch.where(far, size - length - first, first)[:, None]
    line = torch.arange(size, device=margin.device)
    return (line >= first) & (line < first + length[:, None])


def _inside(corners: Tensor, h: int, w: int) -> Bool[Tensor, "n h w"]:
    """Return which pixels a polygon ``(n, 5, 2)`` of (x, y) covers, its outline included.

    Inside is what a ray crosses an odd number of edges from (as OpenCV fills, which draws the
    outline too: a pixel within half a pixel of an edge).
    """
    y = torch.arange(h, device=corners.device).view(1, 1, h, 1)
    x = torch.arange(w, device=corners.device).view(1, 1, 1, w)
    x0, y0 = corners[:, :, None, None].unbind(-1)
    x1, y1 = corners.roll(-1, 1)[:, :, None, None].unbind(-1)
    dx, dy = x1 - x0, y1 - y0
    crosses = ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * dx / torch.where(dy == 0, 1, dy))
    along = ((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2).clamp(min=1)
    along = along.clamp(0, 1)
    distance = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
    inside: Tensor = (crosses.sum(1) % 2 == 1) | (distance <= 0.25).any(1)
    return inside


def _darkened(images: Images) -> Images:
    """Return the images at half their HLS lightness, hue and saturation kept."""
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    total, spread = high + low, high - low
    # Saturation is spread / total up to lightness ½ and spread / (2 − total) above.
    whole = torch.where(total <= 1, total, 2 - total)
    saturation = spread / whole.clamp(min=1e-6)
    # Half the lightness is at most ½, where a channel lies within lightness · (1 ± saturation).
    place = (2 * images - total) / spread.clamp(min=1e-6)
    return total / 4 * (1 + saturation * place)


def _gaussian(size: int, device: torch.device) -> Tensor:
    """Return the matrix that smooths a line of pixels, zeros outside."""
    place = torch.arange(size, device=device, dtype=torch.float32)
    deviation = 6 * size / _SIDE
    distance = (place[:, None] - place) / deviation
    # Any factor would do: the pattern is scaled afterwards.
    return torch.exp(-0.5 * distance**2)
