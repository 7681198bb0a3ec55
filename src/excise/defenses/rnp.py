"""RNP: unlearn clean images, learn masks that bring them back, prune what the masks give up.

Paper: Li, Lyu, Ma, Koren, Lyu, Li, Jiang: Reconstructive Neuron Pruning for Backdoor Defense, ICML
2023 (arXiv 2305.14876).

1. Unlearning        max_θ CE(f_θ(x), y) until at most a fifth of the images are right
2. Recovering        min_{m ∈ [0, 1]} CE(f with γ̂ ← m γ̂, x, y), θ̂ frozen, m a mask of every channel
3. Pruning           γ of the *given* network where m ≤ t

Departures from the authors' code, and why:

1. Gradients of unlearning are cut to length 20 after they exist; the code cuts before.
2. Masks start at 1 and are learned after unlearning only; the benchmark also moves them before.
3. t is the largest of 0, .02, … whose accuracy on the defender's images is at most .02 lower (the
   benchmark's rule); the authors print a grid of t with test figures.
4. A loss that is not finite ends the stage with a note; nothing is tried again at another rate, as
   the benchmark's code does after any error.

5. Unlearning lasts at most 20 epochs; the code's loop runs 21.

Where no mask falls at no cost it prunes nothing, as on one victim in four of the core grid (100
images, 20 steps of recovering) and on the planted digits (80). Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import apply_edits, finished, steady_statistics, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Masked, channel_masks, learn_masks
from excise.training.ascent import ascend, tenth_every_ten
from excise.training.masks import gammas
from excise.training.thresholds import prune_below, thresholds
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["RNP"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RNP:
    """Reconstructive neuron pruning (Li et al. 2023)."""

    unlearning_rate: Annotated[float, Field(gt=0)] = 0.01
    """SGD rate of unlearning (the benchmark: 0.001); a tenth from epoch 10 on, and again from epoch
    20 on. Momentum is 0.9."""
    unlearning_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of unlearning (the benchmark: 0.05)."""
    unlearning_epochs: Annotated[int, Field(ge=1)] = 20
    """Unlearning stops there at the latest."""
    unlearning_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Unlearning stops after an epoch with at most this share of its images right."""
    recovering_rate: Annotated[float, Field(gt=0)] = 0.2
    """SGD rate of the masks; momentum is 0.9."""
    recovering_weight: Annotated[float, Field(gt=0)] = 0.2
    """What the loss of recovering is multiplied by."""
    recovering_epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the images while masks are learned."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step."""
    threshold_step: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Distance of the thresholds that are tried (the authors: 0.05)."""
    last_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The largest of them."""
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Largest drop of accuracy on the defender's images, absolute (the benchmark's)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned copy of ``model``.

        Raises:
            ModelError: the network has no batch norm.
        """
        start, images = time.perf_counter(), data.everything()
        names = gammas(model, "RNP")
        worked = working_copy(model)
        optimizer = torch.optim.SGD(
            worked.parameters(), lr=self.unlearning_rate, momentum=0.9,
            weight_decay=self.unlearning_weight_decay,
        )  # fmt: skip
        unlearned = ascend(
            worked, images, optimizer, rng.child("unlearn"),
            rate=lambda done: tenth_every_ten(self.unlearning_rate, done),
            epochs=self.unlearning_epochs, batch_size=self.batch_size,
            accuracy=self.unlearning_accuracy, in_passing=True, max_norm=20, on_round=on_round,
        )  # fmt: skip
        masks = channel_masks(worked.requires_grad_(False), names)
        mask_optimizer = torch.optim.SGD(masks.values(), lr=self.recovering_rate, momentum=0.9)
        masked = Masked(worked, masks)

        def recover(x: Images, labels: Labels) -> Tensor:
            return self.recovering_weight * F.cross_entropy(masked(x), labels)

        with steady_statistics(worked):
            recovered = learn_masks(
                masked, images, recover, mask_optimizer, rng.child("recover"),
                epochs=self.recovering_epochs, batch_size=self.batch_size, stage="recover",
                training=True, on_round=on_round,
            )  # fmt: skip
        edits, pruned = prune_below(
            working_copy(model), masks, thresholds(self.threshold_step, self.last_threshold),
            images, allowed=self.max_accuracy_drop, relative=False, first_failure_ends=True,
            batch_size=self.batch_size, on_round=on_round,
        )  # fmt: skip
        result = working_copy(model)
        apply_edits(result, edits, ())
        notes = (*unlearned.notes, *recovered.notes)
        notes += () if edits else ("No channel was pruned: none was given up at no cost.",)
        history = (*unlearned.history, *recovered.history, *pruned)
        seconds = {"repair": time.perf_counter() - start}
        return Repair(finished(result, model), edits, history, notes=notes, seconds=seconds)
