"""BNP: prune the channels whose batch-norm statistics do not fit clean images.

Paper: Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022.
Poisoned images leave their trace in what a batch norm remembers; clean images do not show it.

Divergence          d_c = ½ ln(v/v̂) + (v̂ + (μ̂ − μ)²) / 2v − ½, equation 6: μ̂, v̂ of what goes into
                    the batch norm on clean images, μ, v its running statistics
Pruned              d_c > mean + u · std of its layer (std with n − 1)

Departures from the authors' code, and why:

1. μ̂ and v̂ are taken over all images and pixels, in one pass; the code takes one batch of 500.
2. ε is added to both variances, so that a dead channel has a finite divergence.

γ alone becomes zero, as in the authors' code; the benchmark's clears β as well. Measured:
docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import apply_edits, batch_norms, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.scores import divergent_channels
from excise.seeding import Rng
from excise.types import DefenderData, OnRound, Repair, Row, ignore_round

__all__ = ["BNP"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BNP:
    """Batch-norm statistics based pruning (Zheng et al. 2022)."""

    u: Annotated[float, Field(gt=0)] = 3.0
    """Standard deviations above its layer's mean from which a channel is pruned."""
    batch_size: Annotated[int, Field(ge=1)] = 500
    """Images at a time; it changes nothing but memory."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned copy of ``model``.

        Raises:
            ModelError: the network has no batch norm.
        """
        start = time.perf_counter()
        batch_norms(model, "BNP")
        worked = working_copy(model)
        images = data.everything().floats().to(dtype_of(worked))
        edits = divergent_channels(worked, images, self.u, batch_size=self.batch_size)
        apply_edits(worked, edits, ())
        row: Row = {"stage": "prune", "round": 1, "pruned": len(edits)}
        on_round(row)
        notes = () if edits else ("No channel stands out.",)
        seconds = {"prune": time.perf_counter() - start}
        return Repair(finished(worked, model), edits, (row,), notes=notes, seconds=seconds)
