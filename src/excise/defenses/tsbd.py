"""TSBD: zero the weights that unlearning moves most, then fine-tune with small gradients.

Paper: Lin, Liu, Wei, Li, Xiong: Unveiling and Mitigating Backdoor Vulnerabilities based on
Unlearning Weight Changes and Backdoor Activeness, NeurIPS 2024 (arXiv 2405.20291).
Specification: docs/methods/newer-defenses.md.

Clean unlearning    max_θ CE(f(x), y) until accuracy ≤ .1; W → W'
Weight change       NWC of filter i of layer l: Σ |W'_{l,i} − W_{l,i}|, all layers ranked together
Reinitialization    of the weights of the fraction n of filters with the largest NWC, the fraction m
                    that moved most: 0
Activeness-aware    g₁ = ∇L(θ), g₂ = ∇L(θ + r · g₁ / ‖g₁‖), norm of each tensor by itself;
fine-tuning         step along (1 − α) g₁ + α g₂, which regularizes ‖∇L‖

Departures from the authors' code, and why:

1. n is one number. The code repairs with eleven and shows the test figures of each.
2. Every convolution takes part, found by tracing, but squeeze-excite gates; the code leaves out
   modules with "shortcut" in their name: those of a residual network's side branches.
3. NWC is not rounded to four digits, which makes ties at these rates.
4. Batch norm sees each batch once, in the pass at θ; the code's in a third pass after the step.
5. A tensor whose gradient is all zero is not moved, where the code divides by its norm.
6. 20 epochs are 20; the code's loop runs 21.

Measured: docs/defenses.md.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import convolutions, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.scores.weight_change import most_changed
from excise.seeding import Rng
from excise.training import Stopwatch, train_epochs
from excise.training.ascent import ascend
from excise.training.gradient_norm import activeness_aware
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["TSBD"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TSBD:
    """Two-Stage Backdoor Defense (Lin et al. 2024)."""

    neuron_ratio: Annotated[float, Field(ge=0, le=1)] = 0.15
    """n: fraction of all filters, those with the largest NWC (the code sweeps .01 to .9)."""
    weight_ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    """m: fraction of these filters' weights, those that moved most, set to 0."""
    unlearning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Rate of SGD (momentum .9, no decay) while unlearning."""
    unlearning_epochs: Annotated[int, Field(ge=1)] = 1000
    """Unlearning stops there at the latest."""
    unlearning_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Unlearning stops after an epoch that leaves at most this accuracy on the images."""
    radius: Annotated[float, Field(ge=0)] = 0.05
    """r: length of the step to where g₂ is taken, for every tensor."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    """α: share of g₂ in a step; 0 is plain fine-tuning."""
    epochs: Annotated[int, Field(ge=0)] = 20
    """Passes over the images while fine-tuning."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of SGD (momentum .9, no decay) while fine-tuning, constant."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step, in both stages."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # The same way down in a tenth of the steps.
        "fast": {"unlearning_rate": 1e-3, "unlearning_epochs": 100},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a reinitialized and fine-tuned copy of ``model``.

        Raises:
            ModelError: the network has no convolution.
        """
        clock = Stopwatch()
        images = data.everything()
        units = convolutions(model, images, "TSBD")
        worked, unlearned = working_copy(model), working_copy(model)
        optimizer = torch.optim.SGD(unlearned.parameters(), lr=self.unlearning_rate, momentum=0.9)
        forgotten = ascend(
            unlearned, images, optimizer, rng.child("unlearn"),
            rate=lambda _: self.unlearning_rate, epochs=self.unlearning_epochs,
            batch_size=self.batch_size, accuracy=self.unlearning_accuracy, in_passing=False,
            on_round=on_round,
        )  # fmt: skip
        weights, moved = (
            [net.get_parameter(f"{unit.layer}.weight").detach() for unit in units]
            for net in (worked, unlearned)
        )
        changes = [(new - old).abs() for new, old in zip(moved, weights, strict=True)]
        for weight, zero in zip(weights, most_changed(changes, self.neuron_ratio,
                                                      self.weight_ratio), strict=True):  # fmt: skip
            weight.masked_fill_(zero, 0)
        clock.lap("unlearn")
        optimizer = torch.optim.SGD(worked.parameters(), lr=self.learning_rate, momentum=0.9)

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            loss = activeness_aware(
                worked, images.to(dtype_of(worked)), labels, radius=self.radius, alpha=self.alpha
            )
            optimizer.step()
            return loss

        tuned = train_epochs(
            worked, images, step, rng.child("tune"), epochs=self.epochs,
            batch_size=self.batch_size, stage="tune", on_round=on_round,
        )  # fmt: skip
        clock.lap("tune")
        return Repair(
            finished(worked, model), (), (*forgotten.history, *tuned.history),
            notes=(*forgotten.notes, *tuned.notes), seconds=clock.seconds,
        )  # fmt: skip
