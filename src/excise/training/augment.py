"""Random crops and mirror images, a whole batch at a time, before images become floats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return each image shifted by up to ``padding`` pixels, black outside, perhaps mirrored.

    Args:
        images: ``(n, c, h, w)`` of any type.
        padding: pixels added on every side before cropping back to ``h × w``.
        flip: whether to mirror each image left to right with probability one half.
        generator: on the images' device.
    """
    n, _, h, w = images.shape
    device = images.device
    columns = torch.arange(w, device=device).expand(n, w)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, w - 1 - columns, columns)
    if padding:
        shift = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=device)
        images = F.pad(images, (padding,) * 4)
        rows = torch.arange(h, device=device) + shift[0]
        columns = columns + shift[1]
    else:
        rows = torch.arange(h, device=device).expand(n, h)
    # Channels last while gathering: one index picks a whole pixel.
    pixels = images.permute(0, 2, 3, 1)
    batch = torch.arange(n, device=device)[:, None, None]
    return pixels[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
