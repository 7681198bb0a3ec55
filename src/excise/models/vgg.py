"""VGG-19 with batch norm for small images.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015
(arXiv 1409.1556), configuration E; batch norm after every convolution.

Departures from the paper: after the last pooling an image of 32×32 is one pixel, so the three
fully connected layers are one linear layer over the mean of all pixels, as usual for CIFAR.
``torchvision:vgg19_bn`` is the network with all three. Names under ``features`` are the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from excise.models.widths import check_width

__all__ = ["VGG", "vgg19_bn"]

# Configuration E: (convolutions, channels as a multiple of the width) of each of five stages.
_STAGES = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each ended by a pooling; one linear layer.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        width: channels of the first stage.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        check_width(width)
        layers: list[nn.Module] = []
        channels = in_channels
        for convolutions, multiple in _STAGES:
            for _ in range(convolutions):
                conv = nn.Conv2d(channels, multiple * width, 3, padding=1)
                channels = multiple * width
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            # Rounding up lets images under 32×32 through all five poolings; others are the same.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        # PyTorch's default shrinks the signal by √6 a layer: over 16 layers that still trains
        # with batch norm, but slowly. He et al. 2015 keep its size.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images ``(n, c, h, w)`` to logits ``(n, num_classes)``."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg19_bn(num_classes: int, in_channels: int = 3, width: int = 64) -> VGG:
    """Return a VGG-19 with batch norm for images of about 32×32 pixels.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        width: channels of the first stage, 1 to 1024; 64 in the paper.

    Raises:
        ModelError: a width out of range.
    """
    return VGG(num_classes, in_channels, width)
