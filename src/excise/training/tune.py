"""Fine-tuning on a handful of images: validate after every epoch, keep the best, stop early."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from excise.models import device_of
from excise.seeding import Rng
from excise.training.epochs import recorded
from excise.training.fit import batches_of
from excise.types import OnRound, Row, ignore_round

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True)
class Tuned:
    """How a fine-tuning went.

    Args:
        best_epoch: the epoch whose weights the model now holds; 0 if none was better than the
            start.
        capped: whether it stopped at ``max_epochs``, not by patience.
        diverged: whether it stopped because a loss was no longer finite.
        history: one row an epoch.
    """

    best_epoch: int
    capped: bool
    diverged: bool
    history: tuple[Row, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the repair should know of it."""
        if self.capped:
            return (f"Fine-tuning stopped at the cap of {len(self.history)} epochs.",)
        if self.diverged:
            return ("Fine-tuning diverged; the last good state was kept.",)
        return ()


def tune(
    model: nn.Module,
    n: int,
    losses: Callable[[Tensor], Iterator[Tensor]],
    validate: Callable[[], float],
    optimizer: torch.optim.Optimizer,
    rng: Rng,
    *,
    batch_size: int,
    patience: int,
    max_epochs: int,
    hold: Callable[[], None] | None = None,
    on_round: OnRound = ignore_round,
) -> Tuned:
    """Fine-tune ``model`` in place and leave the best weights in it, in eval mode.

    Args:
        model: trained in train mode, so that batch norm follows the batches it sees.
        n: how many training images there are; each epoch visits every one once.
        losses: given the indices of a batch (on the model's device), yields the losses whose
            gradients are added before one update; each is freed before the next is computed.
        validate: the figure to lower, computed in eval mode after every epoch.
        optimizer: over the model's parameters.
        rng: draws the order of every epoch.
        patience: epochs without strict improvement after which it stops; 0 tunes nothing.
        max_epochs: stops there at the latest.
        hold: called after every update; puts silenced filters back to zero.
        on_round: called after every epoch.
    """
    device = device_of(model)
    model.eval()
    best, best_epoch, waited = validate(), 0, 0
    kept = _copy(model)
    history: list[Row] = []
    diverged = False
    epoch = 0
    # Dropout draws from torch's global generator; the caller may be under no_grad.
    with rng.scope("global"), torch.enable_grad():
        while waited < patience and epoch < max_epochs and not diverged:
            epoch += 1
            model.train()
            for index in batches_of(n, batch_size, rng.torch(f"epoch/{epoch}", device)):
                optimizer.zero_grad(set_to_none=True)
                for loss in losses(index):
                    loss.backward()
                optimizer.step()
                if hold is not None:
                    hold()
            model.eval()
            value = validate()
            diverged = not math.isfinite(value)
            # Written so that any figure is better than a start that had none (NaN).
            if not diverged and not value >= best:
                best, best_epoch, waited, kept = value, epoch, 0, _copy(model)
            else:
                waited += 1
            row: Row = {
                "stage": "tune", "epoch": epoch, "validation_loss": value, "waited": waited,
            }  # fmt: skip
            history.append({**row, "validation_loss": recorded(value)})
            on_round(row)
    optimizer.zero_grad(set_to_none=True)
    model.load_state_dict(kept)
    return Tuned(best_epoch, waited < patience and not diverged, diverged, tuple(history))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
