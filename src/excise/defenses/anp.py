"""ANP: mask the channels that a small change of batch norms' scales turns against the labels.

Paper: Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021
(arXiv 2110.14430). m ∈ [0, 1] is a mask on the γ of every channel of every batch norm.

Objective           min_m α · L(mγ, β) + (1 − α) · max_{|δ|,|ξ| ≤ ε} L((m + δ)γ, (1 + ξ)β), (4)
Inner maximization  δ, ξ ~ U(−ε, ε), then ``steps`` sign steps of ε / steps
Pruned              γ of channels with m ≤ t, β stays; t as large as validation accuracy allows

Departures from the authors' code, and why:

1. δ and ξ are projected back to ±ε after every step; from a random start they reached 2ε.
2. The threshold is the largest of 0, .05, … .9 whose relative drop of *validation* accuracy is
   below ``max_relative_accuracy_drop``; the authors print all, the benchmark's takes test images.
3. Masks are learned in train mode on a copy, whose statistics are thrown away: what is pruned is
   the network as it was given.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import apply_edits, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Masked, Stopwatch, channel_masks, descend, recorded
from excise.training.augment import crop_and_flip
from excise.training.masks import clamp_masks, gammas
from excise.training.scales import perturbed
from excise.training.thresholds import prune_below, thresholds
from excise.types import (
    DefenderData,
    LabelledImages,
    OnRound,
    Repair,
    Row,
    as_floats,
    ignore_round,
)  # fmt: skip

__all__ = ["ANP"]

Masks = dict[str, Tensor]
#: Iterations between two rows of history.
_ROW = 20


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ANP:
    """Adversarial neuron pruning (Wu & Wang 2021)."""

    epsilon: Annotated[float, Field(ge=0)] = 0.4
    """ε: largest relative change of a scale or shift."""
    steps: Annotated[int, Field(ge=1)] = 1
    """Sign steps of the inner maximization."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.2
    """α: weight of the loss without perturbation."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """SGD learning rate of the masks (the benchmark: 0.01); momentum is 0.9."""
    iterations: Annotated[int, Field(ge=1)] = 2000
    """Batches, drawn with replacement."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a batch."""
    threshold_step: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Distance of the thresholds that are tried."""
    last_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The largest of them."""
    max_relative_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Validation accuracy falls by less than this fraction of what it was (the benchmark's)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"iterations": 100, "batch_size": 32},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned copy of ``model``.

        Raises:
            DataError: no validation images.
            ModelError: the network has no batch norm.
        """
        held, clock = data.held_out("ANP"), Stopwatch()
        names = gammas(model, "ANP")
        masks, rows = self._learn(working_copy(model), names, data.train, rng, on_round)
        clock.lap("mask")
        edits, pruned = prune_below(
            working_copy(model), masks, thresholds(self.threshold_step, self.last_threshold), held,
            allowed=self.max_relative_accuracy_drop, relative=True, first_failure_ends=False,
            batch_size=self.batch_size, on_round=on_round,
        )  # fmt: skip
        worked = working_copy(model)
        apply_edits(worked, edits, ())
        notes = [] if edits else ["No channel was pruned: every threshold cost too much."]
        if isinstance(rows[-1]["loss"], str):
            last = rows[-1]["iteration"]
            notes.append(f"The masks diverged in iteration {last}; those before it were kept.")
        clock.lap("prune")
        history, seconds = (*rows, *pruned), clock.seconds
        return Repair(finished(worked, model), edits, history, notes=tuple(notes), seconds=seconds)

    def _learn(
        self, model: nn.Module, names: list[str], data: LabelledImages, rng: Rng, on_round: OnRound
    ) -> tuple[Masks, list[Row]]:
        """Return the masks after all iterations, or before the first number that is not finite."""
        model.requires_grad_(False)
        masks = channel_masks(model, names)
        optimizer = torch.optim.SGD(masks.values(), lr=self.learning_rate, momentum=0.9)
        generator, masked = rng.torch("iterations", data.device), Masked(model, masks)
        rows: list[Row] = []
        with rng.scope("global"), torch.enable_grad():
            model.train()
            for iteration in range(1, self.iterations + 1):
                shape = (self.batch_size,)
                index = torch.randint(len(data), shape, generator=generator, device=data.device)
                images, labels = data.images[index], data.labels[index]
                images = crop_and_flip(images, data.shape[1] // 8, data.mirror, generator)
                images = as_floats(images).to(dtype_of(model))
                bad = perturbed(masked, images, labels, self.epsilon, self.steps, generator)
                natural = F.cross_entropy(masked(images), labels)
                robust = F.cross_entropy(masked(images, bad), labels)
                loss = self.alpha * natural + (1 - self.alpha) * robust
                value = float(loss.detach())
                if math.isfinite(value):
                    good = {name: mask.detach().clone() for name, mask in masks.items()}
                    descend(optimizer, loss)
                    clamp_masks(masks)
                    # A finite loss may have a gradient that is not.
                    if not all(mask.isfinite().all() for mask in masks.values()):
                        masks, value = good, math.nan
                finite = math.isfinite(value)
                if iteration % _ROW == 0 or iteration == self.iterations or not finite:
                    rows.append({"stage": "mask", "iteration": iteration, "loss": recorded(value)})
                    on_round(rows[-1])
                if not finite:
                    break
        return masks, rows
