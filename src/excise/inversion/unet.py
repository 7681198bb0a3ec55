"""A U-Net that changes images: what it draws is added to them.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015 (arXiv 1505.04597), with instance norms, leaky
rectifiers and transposed convolutions, as generators of triggers use it (BTI-DBF, ICLR 2024).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from excise.types import Images

__all__ = ["UNet"]

#: No layer is wider.
_WIDEST = 512


class UNet(nn.Module):
    """From images to changed images of the same size, in [0, 1].

    Args:
        channels: of the images.
        size: height and width of the images it will see first; halved only while 2 pixels are left.
        width: filters of the first block; each further block doubles them.
        blocks: how often the images are halved, at most.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int, blocks: int) -> None:
        super().__init__()
        # An instance norm has no statistics of one pixel.
        halvings = min(blocks, max(0, min(size).bit_length() - 2))
        widths = [min(width << k, _WIDEST) for k in range(halvings + 1)]
        self.down = nn.ModuleList(_pair(a, b) for a, b in pairwise([channels, *widths]))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(a, a, 3, stride=2, padding=1, output_padding=1) for a in widths[1:]
        )
        self.up = nn.ModuleList(_pair(a + b, a) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[0], channels, 1)
        with torch.no_grad():  # begin near the identity
            for parameter in self.last.parameters():
                parameter.mul_(0.1)

    def forward(self, images: Images) -> Images:
        """Return the changed images; sides that cannot be halved are continued at the edge."""
        (h, w), unit = images.shape[-2:], 1 << len(self.up)
        maps, seen = F.pad(images, (0, -w % unit, 0, -h % unit), mode="replicate"), []
        for k, block in enumerate(self.down):
            maps = block(F.max_pool2d(maps, 2) if k else maps)
            seen.append(maps)
        for grow, block, beside in zip(
            reversed(self.grow), reversed(self.up), reversed(seen[:-1]), strict=True
        ):
            maps = block(torch.cat([F.leaky_relu(grow(maps)), beside], 1))
        drawn: Images = self.last(maps)[:, :, :h, :w]
        return (images + drawn).clamp(0, 1)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.InstanceNorm2d(outputs, affine=True),
        nn.LeakyReLU(),
    )
