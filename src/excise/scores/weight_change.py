"""Neuron weight change: how far clean unlearning moved each filter, and its weights.

Paper: Lin, Liu, Wei, Li, Xiong, NeurIPS 2024 (arXiv 2405.20291). NWC of filter i of layer l is
Σ |W'_{l,i} − W_{l,i}|: a sum, so that filters with many weights rank high.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["most_changed"]


def most_changed(
    changes: Sequence[Tensor], neuron_ratio: float, weight_ratio: float
) -> list[Tensor]:
    """Return which weights to reset, a mask for each layer.

    Args:
        changes: |W' − W| of each layer, ``(filters, …)``.
        neuron_ratio: n, of the filters of all layers; rounded down.
        weight_ratio: m, of those filters' weights; rounded down. Equals of the last one join it.
    """
    nwc = torch.cat([change.flatten(1).sum(1) for change in changes])
    chosen = torch.zeros_like(nwc, dtype=torch.bool)
    count = int(neuron_ratio * len(nwc) + 1e-9)
    chosen[nwc.argsort(descending=True, stable=True)[:count]] = True
    filters = chosen.split([len(change) for change in changes])
    pool = torch.cat([change[f].flatten() for change, f in zip(changes, filters, strict=True)])
    count = int(weight_ratio * len(pool) + 1e-9)
    least = pool.sort(descending=True).values[count - 1] if count else pool.new_tensor(torch.inf)
    return [
        (change >= least) & f.view(-1, *(1,) * (change.ndim - 1))
        for change, f in zip(changes, filters, strict=True)
    ]
