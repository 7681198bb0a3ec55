"""Tiny networks and images on which the fine-tuning defenses are restated slowly and plainly."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages


class Tiny(nn.Module):
    """Three resolutions, batch norm, a linear head; in double precision."""

    def __init__(self, classes=3):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.third = nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        x = F.relu(self.third(F.relu(self.second(self.first(images)))))
        return self.head(x.mean((2, 3)))


def tiny(classes=3, seed=0):
    with Rng(seed).scope("tiny"):
        return Tiny(classes).double().eval()


class OneConvolution(nn.Module):
    """A convolution, its batch norm and a linear head; in single precision."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, images):
        return self.linear(F.relu(self.bn(self.conv(images))).mean((2, 3)))


def one_convolution():
    with Rng(0).scope("network"):
        return OneConvolution().eval()


def pictures(n=6, classes=3, seed=0):
    """Return the defender's data: so small that crops, by an eighth of the height, do nothing."""
    images = torch.rand(n, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return DefenderData(
        LabelledImages(images, torch.arange(n) % classes, tuple("abcdefgh"[:classes])), None, "here"
    )


def half_cosine(rate, epoch, epochs):
    return rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


class PlainSGD:
    """Momentum SGD with weight decay, written out."""

    def __init__(self, model, momentum, weight_decay=0.0, nesterov=False):
        self.parameters = list(model.parameters())
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.restart()

    def restart(self):
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, gradients, rate):
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            g = g + self.weight_decay * p
            v = self.velocity[i] = self.momentum * self.velocity[i] + g
            p -= rate * (g + self.momentum * v if self.nesterov else v)


def same(ours, plain):
    """Weights and statistics agree to the last digits of double precision."""
    theirs = plain.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-9, atol=1e-11, msg=name)
