"""CLP: prune the channels whose Lipschitz bound stands out in their layer; needs no image.

Paper: Zheng, Tang, Li, Liu: Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022
(arXiv 2208.03111).

Bound of a channel  s_c = σ_max(W_c) · |γ_c| / √(v_c + ε), W_c ``(in, k²)``, equation 8
Pruned              s_c > mean + u · std of its layer, equation 9 (std with n − 1)

Departures from the authors' code, and why:

1. A convolution is paired with its owner batch norm, found by tracing; the code pairs every batch
   norm with the convolution registered before it, which in pre-activation networks is another one.
   A batch norm that no convolution owns is left out.
2. The filter itself goes with γ and β; the output is the same.
3. ε stands under the root, as the batch norm computes.
4. Squeeze-excite convolutions are left out, as everywhere here.

A layer of n channels has no score above (n − 1)/√n deviations: at u = 3 layers of fewer than 11
channels are never pruned. Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.errors import ModelError
from excise.models import (
    BatchNorm,
    apply_edits,
    batch_norms,
    finished,
    prunable,
    trace,
    working_copy,
)
from excise.registry import STRICT
from excise.scores import channel_lipschitz, outliers
from excise.seeding import Rng
from excise.types import DefenderData, Edit, OnRound, Repair, Row, ignore_round

__all__ = ["CLP"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CLP:
    """Channel Lipschitzness based pruning (Zheng et al. 2022)."""

    u: Annotated[float, Field(gt=0)] = 3.0
    """Standard deviations above its layer's mean from which a channel is pruned."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned copy of ``model``; of the images only the shape is looked at.

        Raises:
            ModelError: the network has no batch norm, or none right after a convolution.
        """
        start = time.perf_counter()
        norms = batch_norms(model, "CLP")
        units = prunable(trace(model, data.train.floats()[:1]))
        owned = [(unit, norms[unit.owner]) for unit in units if unit.owner in norms]
        if not owned:
            raise ModelError(
                "a network with batch norm right after a convolution, on which CLP works",
                got=f"{type(model).__name__} without any",
                remedy="Choose a defense that needs none, such as ft-sam or grad-prune.",
            )
        edits: list[Edit] = []
        for unit, norm in owned:
            conv = model.get_submodule(unit.layer)
            assert isinstance(conv, nn.Conv2d)
            edits += [
                Edit("silence", unit.layer, index, 1)
                for index in outliers(_bounds(conv, norm), self.u)
            ]
        worked = working_copy(model)
        apply_edits(worked, tuple(edits), units)
        row: Row = {"stage": "prune", "round": 1, "pruned": len(edits)}
        on_round(row)
        notes = () if edits else ("No channel stands out.",)
        seconds = {"prune": time.perf_counter() - start}
        return Repair(finished(worked, model), tuple(edits), (row,), notes=notes, seconds=seconds)


@torch.no_grad()
def _bounds(conv: nn.Conv2d, norm: BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return channel_lipschitz(conv.weight, norm.weight, norm.running_var, norm.eps)
