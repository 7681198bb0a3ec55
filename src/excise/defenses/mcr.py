"""MCR: connect the network with a fine-tuned one by a curve, and take a point of the curve.

Paper: Zhao, Chen, Das, Ramamurthy, Lin: Bridging Mode Connectivity in Loss Landscapes and
Adversarial Robustness, ICLR 2020 (arXiv 2005.00060).

Curve (Bézier)      φ(t) = (1−t)² w₁ + 2t(1−t) θ + t² w₂;  w₁ the given network, at t = 0,
                    w₂ the same after fine-tuning, at t = 1
Training            min_θ E_{t~U(0,1)} CE(f_{φ(t)}(x), y) + ½ wd ‖φ(t)‖²,  θ starts at (w₁ + w₂)/2
Batch norm at t     means and variances over all training images, cumulatively

Departures, and why:

1. The authors connect two backdoored networks. Who has one fine-tunes it for the second end, as the
   benchmarks do (their rates for that: SGD .01, 100 epochs).
2. t: the authors show the whole curve, one benchmark fixes .1, where φ is .81 of the backdoored end
   and keeps its backdoor. Ours is chosen on validation images: of the points that keep accuracy,
   the one with the largest share 2t(1−t) of θ, the only part that no backdoored network gave.
3. Statistics are measured with dropout at rest.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import dtype_of, finished, working_copy
from excise.models.statistics import re_estimate
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Stopwatch
from excise.training.curve import Weights, bezier, connect, load_weights, weights_of
from excise.training.finetune import fine_tune
from excise.training.pairs import count_correct
from excise.types import DefenderData, OnRound, Repair, Row, ignore_round

__all__ = ["MCR"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MCR:
    """Mode Connectivity Repair (Zhao et al. 2020)."""

    tune_epochs: Annotated[int, Field(ge=0)] = 100
    """Epochs of fine-tuning that make the second end."""
    tune_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of that SGD (momentum .9, weight decay 5e-4), cosine to 0."""
    epochs: Annotated[int, Field(ge=0)] = 100
    """Epochs in which the curve's middle θ is trained."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of SGD (momentum .9) for θ: constant for half of the epochs, falling to a hundredth
    until nine tenths. BackdoorBench: 3e-5, cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """wd, on the weights at t."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step, and at a time where statistics are measured."""
    t: Annotated[float, Field(ge=0, le=1)] | None = None
    """The point that is returned; None: chosen on validation. BackdoorBench: .1."""
    points: Annotated[int, Field(ge=1)] = 9
    """Inner points of the curve to choose from, equally far apart."""
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Validation accuracy a point may lose against the given network, absolute (ours)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"tune_epochs": 50, "epochs": 50},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return the network at a point of the curve.

        Raises:
            DataError: no validation images to choose t by.
        """
        if self.t is None:
            data.held_out("MCR")
        clock = Stopwatch()
        end, worked = working_copy(model), working_copy(model)
        tuned = fine_tune(
            end, data.train, rng.child("end"), epochs=self.tune_epochs,
            learning_rate=self.tune_rate, batch_size=self.batch_size, on_round=on_round,
        )  # fmt: skip
        first, last = weights_of(worked), weights_of(end)
        clock.lap("tune")
        # From here on the parameters of `worked` are θ.
        load_weights(worked, {name: (w + last[name]) / 2 for name, w in first.items()})
        trained = connect(
            worked, first, last, data.train, rng.child("curve"), epochs=self.epochs,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay,
            batch_size=self.batch_size, on_round=on_round,
        )  # fmt: skip
        middle = weights_of(worked)
        clock.lap("curve")
        rows, notes = self._choose(worked, working_copy(model), first, middle, last, data, on_round)
        clock.lap("choose")
        history = (*tuned.history, *trained.history, *rows)
        notes = (*tuned.notes, *trained.notes, *notes)
        return Repair(finished(worked, model), (), history, notes=notes, seconds=clock.seconds)

    def _choose(
        self, worked: nn.Module, given: nn.Module, first: Weights, middle: Weights, last: Weights,
        data: DefenderData, on_round: OnRound,
    ) -> tuple[list[Row], tuple[str, ...]]:  # fmt: skip
        """Load a point of the curve into ``worked``, with statistics of its own."""
        images = data.train.floats().to(dtype_of(worked))

        def move(t: float) -> None:
            load_weights(worked, bezier(first, middle, last, t))
            re_estimate(worked, images, self.batch_size)

        if self.t is not None:
            move(self.t)
            return [], ()
        held = data.held_out("MCR")
        floor = count_correct(given, held, 256) - math.floor(
            self.max_accuracy_drop * len(held) + 1e-9
        )
        right: dict[float, int] = {}
        rows: list[Row] = []
        for number in range(1, self.points + 1):
            t = number / (self.points + 1)
            move(t)
            right[t] = count_correct(worked, held, 256)
            rows.append({"stage": "choose", "t": t, "accuracy": right[t] / len(held)})
            on_round(rows[-1])
        kept = [t for t in right if right[t] >= floor]
        notes = () if kept else ("No point of the curve kept the accuracy; the best was taken.",)
        if not kept:
            kept = [t for t in right if right[t] == max(right.values())]
        # Of two equally near the middle, the one nearer the fine-tuned end.
        move(min(reversed(kept), key=lambda t: round(abs(t - 0.5), 9)))
        return rows, notes
