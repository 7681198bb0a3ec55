"""Fine-tuning on clean images: SGD, cosine to zero; with cross-entropy it is the field's FT."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.models import dtype_of
from excise.seeding import Rng
from excise.training.epochs import Epochs, cosine, descend, train_epochs
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
    loss: Callable[[Images, Labels], Tensor] | None = None,
    hold: Callable[[], None] | None = None,
    training: bool = True,
    stage: str = "tune",
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Fine-tune every parameter of ``model`` in place; leave it in eval mode.

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
        loss: what is minimized, of images in the network's type and their labels; None: the
            cross-entropy.
        hold: called after every update; puts what was cut back to zero, or weights where they
            have to stay.
        training: whether the model is in train mode in a step.
        stage: what history calls this.
        on_round: called after every epoch.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
    )

    def cross_entropy(images: Images, labels: Labels) -> Tensor:
        return F.cross_entropy(model(images), labels)

    lowered = cross_entropy if loss is None else loss

    def step(images: Images, labels: Labels, progress: float) -> Tensor:
        rate = final_rate + cosine(learning_rate - final_rate, math.floor(progress), epochs)
        value = descend(optimizer, lowered(images.to(dtype_of(model)), labels), rate)
        if hold is not None:
            hold()
        return value

    return train_epochs(
        model, data, step, rng, epochs=epochs, batch_size=batch_size, stage=stage,
        training=training, on_round=on_round,
    )  # fmt: skip
