"""Plain fine-tuning on clean images: cross-entropy, SGD, cosine to zero (the field's FT)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.models import dtype_of
from excise.seeding import Rng
from excise.training.epochs import Epochs, cosine, set_rate, train_epochs
from excise.types import Images, LabelledImages, Labels, OnRound, ignore_round

__all__ = ["fine_tune"]


def fine_tune(
    model: nn.Module,
    data: LabelledImages,
    rng: Rng,
    *,
    epochs: int = 100,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    final_rate: float = 0.0,
    hold: Callable[[], None] | None = None,
    stage: str = "tune",
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Fine-tune every parameter of ``model`` in place, in train mode; leave it in eval mode.

    The defaults are the field's baseline. Images are cropped and mirrored as in training.

    Args:
        model: a model of your own.
        data: clean images on the model's device.
        rng: draws orders and augmentation.
        epochs: how many; the last one is kept.
        learning_rate: of SGD; it falls to ``final_rate`` along half a cosine, by epochs.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        batch_size: images a step.
        final_rate: at most ``learning_rate``.
        hold: called after every update; puts what was cut back to zero.
        stage: what history calls this.
        on_round: called after every epoch.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )

    def step(images: Images, labels: Labels, progress: float) -> Tensor:
        loss = F.cross_entropy(model(images.to(dtype_of(model))), labels)
        optimizer.zero_grad()
        loss.backward()
        rate = final_rate + cosine(learning_rate - final_rate, math.floor(progress), epochs)
        set_rate(optimizer, rate)
        optimizer.step()
        if hold is not None:
            hold()
        return loss

    return train_epochs(
        model, data, step, rng, epochs=epochs, batch_size=batch_size, stage=stage,
        on_round=on_round,
    )  # fmt: skip
