"""A quadratic Bézier curve through weight space: its points, and training its middle.

Garipov, Izmailov, Podoprikhin, Vetrov, Wilson: Loss Surfaces, Mode Connectivity, and Fast
Ensembling of DNNs, NeurIPS 2018 (arXiv 1802.10026), as Zhao et al. (ICLR 2020) use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.models import dtype_of, working_copy
from excise.seeding import Rng
from excise.training.epochs import Epochs, set_rate, train_epochs
from excise.types import Images, LabelledImages, Labels, OnRound, ignore_round

__all__ = ["Weights", "bezier", "connect", "load_weights", "piecewise", "weights_of"]

Weights = Mapping[str, Tensor]


def bezier(first: Weights, middle: Weights, last: Weights, t: float | Tensor) -> dict[str, Tensor]:
    """Return φ(t) = (1−t)² first + 2t(1−t) middle + t² last, by parameter."""
    return {
        name: (1 - t) ** 2 * w + 2 * t * (1 - t) * middle[name] + t**2 * last[name]
        for name, w in first.items()
    }


def connect(
    bend: nn.Module,
    first: Weights,
    last: Weights,
    data: LabelledImages,
    rng: Rng,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Train the curve's middle θ, the parameters of ``bend``, in place.

    min_θ E_{t~U(0,1)} CE(f_{φ(t)}(x), y) + ½ wd ‖φ(t)‖²; one t is drawn for every batch, and the
    gradient of θ is 2t(1−t) times that at φ(t).

    Args:
        bend: holds θ, at first the middle between both ends.
        first: the weights at t = 0.
        last: the weights at t = 1.
        data: clean images on the model's device.
        rng: draws t, orders and augmentation.
        epochs: how many; 0 leaves θ as it is.
        learning_rate: of SGD (momentum .9); see :func:`piecewise`.
        weight_decay: wd.
        batch_size: images a step.
        on_round: called after every epoch.
    """
    theta = list(bend.parameters())
    optimizer = torch.optim.SGD(theta, lr=learning_rate, momentum=0.9)
    draws = rng.torch("t")
    place = working_copy(bend).train()  # where φ(t) stands
    moved = list(place.parameters())
    names = [name for name, _ in bend.named_parameters()]
    ends = [(first[name], last[name]) for name in names]

    # By hand what autograd would do through φ(t) and its squares, in fewer operations.
    def step(images: Images, labels: Labels, progress: float) -> Tensor:
        t = float(torch.rand((), generator=draws))
        share = 2 * t * (1 - t)
        with torch.no_grad():
            for here, middle, (start, end) in zip(moved, theta, ends, strict=True):
                here.copy_(start).mul_((1 - t) ** 2).add_(middle, alpha=share)
                here.add_(end, alpha=t**2)
        loss = F.cross_entropy(place(images.to(dtype_of(bend))), labels)
        gradients = torch.autograd.grad(loss, moved, materialize_grads=True)
        for middle, here, gradient in zip(theta, moved, gradients, strict=True):
            middle.grad = gradient.add(here.detach(), alpha=weight_decay).mul_(share)
        set_rate(optimizer, piecewise(learning_rate, int(progress) / epochs))
        optimizer.step()
        norms = torch.stack([torch.linalg.vector_norm(here.detach()) for here in moved])
        return loss.detach() + weight_decay / 2 * norms.square().sum()

    return train_epochs(
        bend, data, step, rng, epochs=epochs, batch_size=batch_size, stage="curve",
        answers=False, on_round=on_round,
    )  # fmt: skip


def piecewise(rate: float, done: float) -> float:
    """Return the rate after the fraction ``done`` of all epochs.

    All of it for half of them, then a line down to a hundredth at nine tenths, then that.
    """
    return rate * min(1.0, max(0.01, 1 - (done - 0.5) / 0.4 * 0.99))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into the parameters of ``model``, in place; buffers stay."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
