"""Pre-activation ResNet-18 for small images.

He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016 (arXiv 1603.05027),
figure 4e, with the stem, widths and strides of the CIFAR networks of the backdoor field.

Departures from the paper: as everywhere in this field there is no batch norm after the last
block, so that checkpoints of its benchmarks fit; their names of modules are kept too.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from excise.models.widths import check_width

__all__ = ["PreActBlock", "PreActResNet", "preactresnet18"]


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU, plus the way around them.

    Args:
        in_planes: channels that come in.
        planes: channels that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        # Without AVX-512, torch 2.14 writes beyond its memory in the backward pass of a strided 1×1
        # convolution of fewer than 8 channels in channels-last order. A stride of 1 on every
        # other pixel is the same.
        self.skipped, stride = (stride, 1) if in_planes < 8 else (1, stride)
        if self.skipped * stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, in_planes, h, w)`` to ``(n, planes, h / stride, w / stride)``."""
        active = F.relu(self.bn1(x))
        # Where the shape changes, the way around starts after the activation, not before it.
        around = x
        if self.shortcut is not None:
            around = self.shortcut(active[:, :, :: self.skipped, :: self.skipped])
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + around


class PreActResNet(nn.Module):
    """A stem, four stages of blocks, the mean over all pixels, one linear layer.

    Args:
        blocks: how many blocks each of the four stages has.
        num_classes: outputs.
        in_channels: channels of an image.
        width: channels of the stem and of the first stage; each later stage doubles them.
    """

    def __init__(
        self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int, width: int
    ) -> None:
        super().__init__()
        check_width(width)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images ``(n, c, h, w)`` to logits ``(n, num_classes)``."""
        x = self.conv1(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(PreActBlock(planes, planes, 1) for _ in range(blocks - 1)))


def preactresnet18(num_classes: int, in_channels: int = 3, width: int = 64) -> PreActResNet:
    """Return a pre-activation ResNet-18 for images of 8×8 pixels and more.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        width: channels of the first stage, 1 to 1024; 64 in the paper.

    Raises:
        ModelError: a width out of range.
    """
    return PreActResNet((2, 2, 2, 2), num_classes, in_channels, width)
