"""The small convolutional networks that make triggers, and how they are rebuilt from weights.

Both take images of any size: what is halved on the way down comes back to the size it had.

* :class:`Pyramid`: Nguyen & Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020 (arXiv
  2010.08138): three poolings, three bilinear upsamplings, no skip connections. Published widths
  are 32 (color) and, with two poolings, 16 (MNIST).
* :class:`Autoencoder`: Doan, Lao, Zhao, Li: LIRA, ICCV 2021: four strided convolutions and four
  transposed ones, from 16 to 128 filters and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.errors import TriggerError
from excise.types import Images, round_to_8_bits

__all__ = [
    "Autoencoder",
    "Pyramid",
    "Weights",
    "rebuilt",
    "through_8_bits",
    "trainable",
    "weights_of",
]

Weights = Mapping[str, Tensor]


class _Generator(nn.Module):
    """What makes triggers: it knows for images of how many channels."""

    sizes: tuple[int, int]

    def check(self, images: Images) -> None:
        """Refuse images of other channels than the network was trained on.

        Raises:
            TriggerError: they are such.
        """
        if images.shape[1] != self.sizes[0]:
            raise TriggerError(
                f"images of {self.sizes[0]} channels, like those the trigger was learned on",
                got=str(images.shape[1]),
                remedy="Plant a victim on images of this kind.",
            )


class Pyramid(_Generator):
    """From images to ``outputs`` maps in [0, 1] of the same size.

    Args:
        channels: of the images.
        outputs: how many maps.
        width: filters of the first convolution.
    """

    def __init__(self, channels: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.sizes, w = (channels, outputs), width
        down = ((channels, w), (w, 2 * w), (2 * w, 4 * w))
        up = ((4 * w, 2 * w, True), (2 * w, w, True), (w, outputs, False))
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in down)
        self.middle = _conv(4 * w, 4 * w)
        self.up = nn.ModuleList(nn.Sequential(_conv(a, a), _conv(a, b, r)) for a, b, r in up)

    def forward(self, images: Images) -> Tensor:
        """Return the maps; each is a sigmoid."""
        maps, sizes = images, []
        for block in self.down:
            maps = block(maps)
            sizes.append(maps.shape[-2:])
            maps = F.max_pool2d(maps, 2, ceil_mode=True)
        maps = self.middle(maps)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            maps = block(F.interpolate(maps, size=size, mode="bilinear"))
        # tanh(z) / 2 + ½, as it is published.
        return torch.sigmoid(2 * maps)

    @classmethod
    def like(cls, weights: Weights) -> Pyramid:
        """Return a network of the sizes that ``weights`` have."""
        (w, c), outputs = weights["down.0.0.0.weight"].shape[:2], len(weights["up.2.1.0.weight"])
        return cls(c, outputs, w)


class Autoencoder(_Generator):
    """From images to as many maps in [−1, 1] of the same size.

    Args:
        channels: of the images.
        width: filters of the first convolution.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.sizes = channels, channels
        pairs = [(channels, width), *((width << k, width << k + 1) for k in range(3))]
        self.encoder = nn.Sequential(*(_halve(a, b) for a, b in pairs))
        self.decoder = nn.Sequential(*(_double(b, a) for a, b in reversed(pairs[1:])))
        self.last = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, images: Images) -> Tensor:
        """Return the maps; images whose sides are no multiples of 16 are continued at the edge."""
        h, w = images.shape[-2:]
        maps = F.pad(images, (0, -w % 16, 0, -h % 16), mode="replicate")
        return torch.tanh(self.last(self.decoder(self.encoder(maps))))[:, :, :h, :w]

    @classmethod
    def like(cls, weights: Weights) -> Autoencoder:
        """Return a network of the sizes that ``weights`` have."""
        w, c = weights["encoder.0.0.weight"].shape[:2]
        return cls(c, w)


Net = TypeVar("Net", Pyramid, Autoencoder)


def rebuilt(kind: type[Net], weights: Weights) -> Net:
    """Return the network of ``weights``, in eval mode, frozen, sharing their memory.

    Raises:
        TriggerError: weights of another network, or such as are not finite.
    """
    try:
        # On the device "meta" nothing is allocated and nothing drawn.
        with torch.device("meta"):
            network = kind.like(weights)
        network.load_state_dict(dict(weights), assign=True)
        finite = all(weight.isfinite().all() for weight in weights.values())
        got = "" if finite else "NaN or infinity"
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {str(error)[:200]}"
    if got:
        raise TriggerError(
            f"the finite weights of a network {kind.__name__}",
            got=got,
            remedy="Give every tensor of its state_dict(), and no other.",
        )
    return network.eval().requires_grad_(False)


def trainable(kind: type[Net], weights: Weights) -> Net:
    """Return the network of copies of ``weights``, to be trained on."""
    network = rebuilt(kind, {name: value.clone() for name, value in weights.items()})
    return network.train().requires_grad_(True)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights on the processor, as a trigger keeps them."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }


def through_8_bits(images: Tensor) -> Tensor:
    """Return the images in 8 bits; gradients pass as if nothing had been rounded or clipped."""
    return images + (round_to_8_bits(images) - images).detach()


def _conv(inputs: int, outputs: int, relu: bool = True) -> nn.Sequential:
    # The published momentum of batch norm; its statistics come from a few images a batch.
    block = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=0.05)]
    return nn.Sequential(*block, *([nn.ReLU()] if relu else []))


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
