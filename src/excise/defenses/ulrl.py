"""ULRL: unlearn clean images, reset the outputs whose weights moved most, learn them apart.

Paper: Min, Pham, Sun: Unified Neural Backdoor Removal with Only Few Clean Samples through
Unlearning and Relearning (arXiv 2405.14781). W is the weight ``(k, d)`` of the last linear layer,
one row (a "neuron" of the paper) an output. Specification: docs/methods/newer-defenses.md.

Unlearning          max_θ CE(f(x), y), gradients cut to length 20, until accuracy ≤ .2; W → W'
Change of a row     c_k = Σ_j |W'_kj − W_kj|
Suspicious rows S   (c_k − median c) / (1.4826 · MAD) > 3.5; at most two
Relearning          from the given network, rows S reset to U(−√(2/d), √(2/d)), their biases to 0:
                    min_θ CE(f(x), y) + α · Σ_{k∈S} cos(W_k, W⁰_k)

Departures from the authors' code, and why:

1. Where more than two rows are suspicious, the two that moved most; the code takes the first two.
2. The median of an even number of changes is the mean of the middle two; torch takes the lower.
3. Where more than half of the changes are equal, MAD is 0 and the code divides by it; here any
   row above the median is then suspicious.
4. The layer is found by running the network, not by the name "linear".

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import dtype_of, finished, working_copy
from excise.models.last_layer import last_layer
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Stopwatch
from excise.training.ascent import ascend, tenth_every_ten
from excise.training.finetune import fine_tune
from excise.types import DefenderData, Images, LabelledImages, Labels, OnRound, Repair, ignore_round

__all__ = ["ULRL", "suspicious"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ULRL:
    """Unlearn and relearn (Min et al. 2024)."""

    unlearning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of SGD (momentum .9, weight decay 5e-4) while unlearning; a tenth from epoch 10 on."""
    unlearning_epochs: Annotated[int, Field(ge=1)] = 20
    """Unlearning stops there at the latest."""
    unlearning_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Unlearning stops after an epoch with at most this accuracy on its own batches."""
    deviation: Annotated[float, Field(gt=0)] = 3.5
    """Distance above the median, in units of 1.4826 MAD, from which a row is suspicious."""
    most: Annotated[int, Field(ge=1)] = 2
    """At most so many rows are reset."""
    epochs: Annotated[int, Field(ge=0)] = 20
    """Passes over the images while relearning."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.005
    """Rate of SGD (momentum .9, no decay) while relearning, cosine to 0. GTSRB, CIFAR-100 and
    Tiny ImageNet: .001."""
    alpha: Annotated[float, Field(ge=0)] = 0.7
    """α: weight of the cosine to what the reset rows were. GTSRB, CIFAR-100, Tiny ImageNet: .001.
    """
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step, in both stages."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "fast": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a relearned copy of ``model``.

        Raises:
            ModelError: the network does not end in a linear layer.
        """
        clock = Stopwatch()
        unlearned, images = working_copy(model), data.everything()
        layer = self._last(unlearned, images)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.SGD(
            unlearned.parameters(), lr=self.unlearning_rate, momentum=0.9, weight_decay=5e-4
        )
        forgotten = ascend(
            unlearned, images, optimizer, rng.child("unlearn"),
            rate=lambda done: tenth_every_ten(self.unlearning_rate, done),
            epochs=self.unlearning_epochs, batch_size=self.batch_size,
            accuracy=self.unlearning_accuracy, in_passing=True, max_norm=20.0, on_round=on_round,
        )  # fmt: skip
        change = (layer.weight.detach() - before).abs().sum(1)  # (k,)
        rows = suspicious(change, deviation=self.deviation, most=self.most)
        notes = list(forgotten.notes)
        if len(rows) == 0:
            notes.append("No output stood out while unlearning; the rest was plain fine-tuning.")
        clock.lap("unlearn")

        worked = working_copy(model)
        layer = self._last(worked, images)
        with torch.no_grad():
            bound = math.sqrt(2 / layer.in_features)
            generator = rng.torch("reset", before.device)
            layer.weight[rows] = before[rows].uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias[rows] = 0

        def loss(x: Images, labels: Labels) -> Tensor:
            likeness = F.cosine_similarity(layer.weight[rows], before[rows]).sum()
            return F.cross_entropy(worked(x), labels) + self.alpha * likeness

        learned = fine_tune(
            worked, images, rng.child("relearn"), loss=loss, epochs=self.epochs,
            batch_size=self.batch_size, learning_rate=self.learning_rate, weight_decay=0.0,
            stage="relearn", on_round=on_round,
        )  # fmt: skip
        clock.lap("relearn")
        return Repair(
            finished(worked, model), (), (*forgotten.history, *learned.history),
            notes=(*notes, *learned.notes), seconds=clock.seconds,
        )  # fmt: skip

    def _last(self, model: nn.Module, images: LabelledImages) -> nn.Linear:
        return last_layer(model, images.floats()[:2].to(dtype_of(model)))


def suspicious(change: Float[Tensor, " k"], *, deviation: float, most: int) -> Tensor:
    """Return the rows that stand out above the median, at most ``most``, farthest first."""
    change = change if change.dtype == torch.float64 else change.float()
    above = change - change.quantile(0.5)
    spread = 1.4826 * above.abs().quantile(0.5)
    order = change.argsort(descending=True, stable=True)[:most]
    return order[above[order] > deviation * spread]
