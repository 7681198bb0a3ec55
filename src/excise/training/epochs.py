"""Epochs over a handful of images with a step of one's own: what fine-tuning defenses share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from excise.models import device_of, dtype_of
from excise.seeding import Rng
from excise.training.augment import crop_and_flip
from excise.training.fit import batches_of
from excise.types import Images, LabelledImages, Labels, OnRound, Row, as_floats, ignore_round

__all__ = [
    "Epochs",
    "Step",
    "cosine",
    "descend",
    "out_of_patience",
    "recorded",
    "set_rate",
    "train_epochs",
]

#: Images on which a network's answers are looked at after an epoch.
_TRIED = 8

#: From images ``(n, c, h, w)``, their labels and how many epochs are done (a fraction), to the
#: loss. The step zeroes gradients, goes backward and moves whatever it trains.
Step = Callable[[Images, Labels, float], Tensor]


@dataclass(frozen=True)
class Epochs:
    """How it went.

    Args:
        history: one row an epoch.
        diverged: whether it stopped because a loss, a weight or an answer was no longer finite;
            the model then has the weights of the last good epoch.
    """

    history: tuple[Row, ...]
    diverged: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the repair should know of it."""
        if not self.diverged:
            return ()
        stage = self.history[-1]["stage"]
        return (
            f"Stage {stage} diverged in epoch {len(self.history)}; the last good state was kept.",
        )


def train_epochs(
    model: nn.Module,
    data: LabelledImages,
    step: Step,
    rng: Rng,
    *,
    epochs: int,
    batch_size: int,
    stage: str,
    augment: bool = True,
    training: bool = True,
    answers: bool = True,
    enough: Callable[[float], bool] = lambda loss: False,
    on_round: OnRound = ignore_round,
) -> Epochs:
    """Call ``step`` on every batch of every epoch; leave the model in eval mode.

    Args:
        model: trained in place by ``step``.
        data: on the model's device; every epoch visits each image once, in an order of its own.
        step: takes one step and returns its loss.
        rng: draws orders and augmentation; dropout draws from it too.
        epochs: how many.
        batch_size: images a step; a last single image joins the batch before it.
        stage: what history calls this.
        augment: whether images are cropped at random (by an eighth of the height) and, where the
            data says that a mirrored picture keeps its class, mirrored.
        training: whether the model is in train mode in a step.
        answers: whether the model is the network itself. In train mode, where batch norm rescales
            whatever comes, weights can grow until no answer in eval mode is a number: then an
            epoch has diverged too.
        enough: given an epoch's mean loss, whether to stop there.
        on_round: called after every epoch.
    """
    device = device_of(model)
    history: list[Row] = []
    diverged = False
    # Dropout draws from torch's global generator; the caller may be under no_grad.
    with rng.scope("global"), torch.enable_grad():
        for epoch in range(1, epochs + 1):
            good = {name: value.detach().clone() for name, value in model.state_dict().items()}
            generator = rng.torch(f"epoch/{epoch}", device)
            total = torch.zeros((), device=device)
            batches = batches_of(len(data), batch_size, generator)
            model.train(training)
            for number, index in enumerate(batches):
                images = data.images[index]
                if augment:
                    images = crop_and_flip(images, data.shape[1] // 8, data.mirror, generator)
                images = as_floats(images).contiguous(memory_format=torch.channels_last)
                loss = step(images, data.labels[index], epoch - 1 + number / len(batches))
                total += loss.detach().to(total.dtype) * len(index)
            model.eval()
            mean = float(total) / len(data)
            diverged = not (math.isfinite(mean) and _finite(model))
            if training and answers and not diverged:
                diverged = not _answers_are_numbers(model, images)
            history.append({"stage": stage, "epoch": epoch, "loss": recorded(mean)})
            if diverged:
                model.load_state_dict(good)
            on_round(history[-1])
            if diverged or enough(mean):
                break
    model.eval()
    model.zero_grad(set_to_none=True)
    return Epochs(tuple(history), diverged)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float | None = None) -> Tensor:
    """Take one step down ``loss``, at ``rate`` if it is given; return the loss."""
    optimizer.zero_grad()
    loss.backward()
    if rate is not None:
        set_rate(optimizer, rate)
    optimizer.step()
    return loss


def recorded(value: float) -> float | str:
    """Return a figure as a row holds it: a record is JSON, which has no word for infinity."""
    return value if math.isfinite(value) else str(value)


def cosine(rate: float, progress: float, epochs: float) -> float:
    """Return a rate that falls from ``rate`` to 0 in ``epochs`` along half a cosine."""
    return rate * 0.5 * (1 + math.cos(math.pi * min(progress / max(epochs, 1e-9), 1.0)))


def out_of_patience(patience: int, progress: float = 1.0) -> Callable[[float], bool]:
    """Return a test of losses, one after the other: whether to stop there.

    It says so after more than ``patience`` losses in a row that are not below ``progress`` times
    the lowest so far.
    """
    best, waited = math.inf, 0

    def enough(loss: float) -> bool:
        nonlocal best, waited
        # The lowest so far counts only where it was progress.
        best, waited = (loss, 0) if loss < progress * best else (best, waited + 1)
        return waited > patience

    return enough


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _finite(model: nn.Module) -> bool:
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all()) if tensors else True


@torch.no_grad()
def _answers_are_numbers(network: nn.Module, images: Images) -> bool:
    """Return whether a network in eval mode answers some images with finite logits."""
    return bool(network(images[:_TRIED].to(dtype_of(network))).isfinite().all())
