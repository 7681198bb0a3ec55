"""Lower the bounds of a clamped network as far as its clean answers allow: MM-BM's minimization.

Paper: Wang, Xiang, Miller, Kesidis, S&P 2024 (arXiv 2205.06900). Departures and why stand in
:mod:`excise.defenses.mm_bm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from excise.seeding import Rng
from excise.training.epochs import Epochs, descend, recorded
from excise.types import LabelledImages, OnRound, Row, ignore_round

__all__ = ["lower_bounds"]

#: Layers that the authors clamp; λ is meant for the sum of so many norms.
_LAYERS = 3


def lower_bounds(
    clamped: nn.Module,
    bounds: Sequence[Tensor],
    data: LabelledImages,
    wanted: Float[Tensor, "n k"],
    rng: Rng,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    penalty: float,
    factor: float,
    adapt_every: int,
    least_accuracy: float,
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Minimize MSE(f_b(x), f(x)) + λ · 3 · mean over layers ‖b‖₂ over the bounds b, in place.

    Args:
        clamped: f_b, in eval mode; nothing of it needs gradients but its bounds.
        bounds: b, one tensor ``(channels,)`` a layer, which needs gradients.
        data: x and its labels, on the network's device and in its type.
        wanted: f(x), the logits before there were clamps.
        rng: draws the order of every epoch.
        epochs: how many.
        batch_size: images a step.
        learning_rate: of Adam.
        penalty: λ at first.
        factor: λ is multiplied or divided by it.
        adapt_every: epochs between two changes of λ; the first comes after twice as many.
        least_accuracy: λ grows after an epoch with at least this share of the images right.
        on_round: called after every epoch.
    """
    optimizer = torch.optim.Adam(bounds, lr=learning_rate)
    history: list[Row] = []
    diverged = False
    for epoch in range(1, epochs + 1):
        good = [bound.detach().clone() for bound in bounds]
        order = torch.randperm(len(data), generator=rng.torch(f"epoch/{epoch}"))
        error, correct = 0.0, 0
        for index in order.to(data.device).split(batch_size):
            with torch.enable_grad():
                logits = clamped(data.images[index])
                mse = F.mse_loss(logits, wanted[index])
                norms = torch.stack([bound.norm() for bound in bounds])
                descend(optimizer, mse + penalty * _LAYERS * norms.mean())
            error += float(mse.detach()) * len(index) / len(data)
            correct += int((logits.detach().argmax(1) == data.labels[index]).sum())
        diverged = not (
            math.isfinite(error) and all(bool(bound.isfinite().all()) for bound in bounds)
        )
        if diverged:
            with torch.no_grad():
                for bound, last in zip(bounds, good, strict=True):
                    bound.copy_(last)
        history.append({
            "stage": "bound", "epoch": epoch, "penalty": penalty, "mse": recorded(error),
            "accuracy": correct / len(data),
        })  # fmt: skip
        on_round(history[-1])
        if diverged:
            break
        if epoch >= 2 * adapt_every and epoch % adapt_every == 0:
            enough = correct >= least_accuracy * len(data) - 1e-9
            penalty = penalty * factor if enough else penalty / factor
    return Epochs(tuple(history), diverged)
