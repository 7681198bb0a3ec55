"""Unlearning clean images: gradient ascent on their loss, until the network hardly knows them.

Weights that move most while it happens are suspects (RNP, TSBD, ULRL): the unlearned network is
looked at and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.models import dtype_of
from excise.seeding import Rng
from excise.training.epochs import Epochs, set_rate, train_epochs
from excise.training.pairs import count_correct
from excise.types import Images, LabelledImages, Labels, OnRound, ignore_round

__all__ = ["ascend", "tenth_every_ten"]


def ascend(
    model: nn.Module,
    data: LabelledImages,
    optimizer: torch.optim.Optimizer,
    rng: Rng,
    *,
    rate: Callable[[float], float],
    epochs: int,
    batch_size: int,
    accuracy: float,
    in_passing: bool,
    max_norm: float | None = None,
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Maximize the cross-entropy of ``data`` in place, in train mode; leave it in eval mode.

    Args:
        model: unlearned in place.
        data: clean images on the model's device; cropped and mirrored as in training.
        optimizer: over the model's parameters; it descends on −CE.
        rng: draws orders and augmentation.
        rate: the learning rate after so many epochs (a fraction).
        epochs: stops there at the latest.
        batch_size: images a step.
        accuracy: stops after an epoch with at most this share of the images right.
        in_passing: whether that share is counted while the epoch runs, on augmented images in
            train mode; else it is measured after it, on the images as they are in eval mode.
        max_norm: longer gradients, of all parameters together, are cut to this length.
        on_round: called after every epoch.
    """
    correct = 0

    def step(images: Images, labels: Labels, progress: float) -> Tensor:
        nonlocal correct
        logits = model(images.to(dtype_of(model)))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        (-loss).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        set_rate(optimizer, rate(progress))
        optimizer.step()
        correct += int((logits.argmax(1) == labels).sum()) if in_passing else 0
        return loss

    def enough(_: float) -> bool:
        nonlocal correct
        right, correct = correct, 0
        if not in_passing:
            right = count_correct(model, data, batch_size)
        # Whole images: 0.1 of ten images is one, whatever floats say.
        return right <= accuracy * len(data) + 1e-9

    return train_epochs(
        model, data, step, rng, epochs=epochs, batch_size=batch_size, stage="unlearn",
        enough=enough, on_round=on_round,
    )  # fmt: skip


def tenth_every_ten(rate: float, done: float) -> float:
    """Return the rate after ``done`` epochs: a tenth from epoch 10 on, a hundredth from 20 on."""
    return rate * 0.1 ** min(int(done) // 10, 2)
