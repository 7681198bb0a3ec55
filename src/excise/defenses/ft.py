"""FT: fine-tune every parameter on clean images, the baseline of all the others.

Nobody's method; published as a defense and found wanting by Liu, Dolan-Gavitt, Garg: Fine-Pruning,
RAID 2018 (arXiv 1805.12185). Defaults are those of the field's benchmark (Wu, Chen, Zhang, Zhu,
Wei, Yuan, Shen: BackdoorBench, NeurIPS 2022, arXiv 2206.12654).

Fine-tuning         min_w CE(f_w(x), y), SGD; the last epoch is kept

Departures, and why:

1. The rate falls to zero in as many epochs as there are; the benchmark's code falls along a cosine
   of 100 epochs, however many it runs.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.finetune import fine_tune
from excise.types import DefenderData, OnRound, Repair, ignore_round

__all__ = ["FineTuning"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FineTuning:
    """Fine-tuning on clean images (FT)."""

    epochs: Annotated[int, Field(ge=0)] = 100
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.01
    """First learning rate of SGD; it falls to zero along half a cosine, by epochs."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of SGD, on every parameter."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a fine-tuned copy of ``model``."""
        start = time.perf_counter()
        worked = working_copy(model)
        epochs = fine_tune(
            worked, data.everything(), rng, epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, momentum=self.momentum,
            weight_decay=self.weight_decay, on_round=on_round,
        )  # fmt: skip
        seconds = {"tune": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )
