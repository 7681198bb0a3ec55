"""The detector's network: six convolutions over the discrete cosine transform of an image.

Zeng, Park, Mao, Jia, ICCV 2021, §4; ``Train_Detection.ipynb`` of its repository, whose Keras 2
defaults are written out here: Glorot-uniform weights, zero biases, batch norm with eps 1e-3 and
momentum 0.99 (PyTorch counts it as 0.01). On 3 × 32 × 32 it has 292,898 parameters, as published.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from excise.dct import dct2
from excise.types import as_floats, round_to_8_bits

__all__ = ["LEAST", "features", "six_convolutions"]

#: Fewest pixels a side: three poolings halve it.
LEAST = 8
#: Channels and dropout rate of each pair of convolutions.
_STAGES = ((32, 0.2), (64, 0.3), (128, 0.4))


def features(images: Tensor) -> Float[Tensor, "n c h w"]:
    """Return the coefficients of each channel on the scale 0–255; no logarithm, no scaling.

    The notebook cuts 255 · x down to 8 bits; we round, since k / 255 · 255 may fall just short of
    k. Float images are rounded to 8 bits first: what is judged is what a picture file carries.
    """
    floats = as_floats(images) if not images.is_floating_point() else round_to_8_bits(images)
    return dct2(floats.float() * 255)


def six_convolutions(channels: int, height: int, width: int) -> nn.Sequential:
    """Return the network, fresh, its weights drawn from torch's global generator."""
    layers: list[nn.Module] = []
    for wide, dropout in _STAGES:
        for inputs in (channels, wide):
            layers += [
                nn.Conv2d(inputs, wide, 3, padding=1),
                nn.ELU(),
                nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01),
            ]
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        channels, height, width = wide, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, 2)]
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network
