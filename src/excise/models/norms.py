"""The batch norms of a network: what many defenses mask, measure or hold still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from excise.errors import ModelError

__all__ = ["BatchNorm", "batch_norms", "remembering", "scaled", "steady_statistics"]

BatchNorm = nn.modules.batchnorm._BatchNorm


def remembering(model: nn.Module) -> dict[str, BatchNorm]:
    """Return the batch norms that have running statistics, by name; none is no error."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }


def scaled(norms: Mapping[str, BatchNorm]) -> dict[str, BatchNorm]:
    """Return those that have γ and β."""
    return {name: norm for name, norm in norms.items() if norm.weight is not None}


def batch_norms(model: nn.Module, method: str) -> dict[str, BatchNorm]:
    """Return the batch norms that have γ, β and running statistics, by name, in order of modules.

    Args:
        model: the network.
        method: who asks, for the message.

    Raises:
        ModelError: there is none.
    """
    found = scaled(remembering(model))
    if not found:
        raise ModelError(
            f"a network with batch norm, on which {method} works",
            got=f"{type(model).__name__} without any",
            remedy="Choose a defense that needs none, such as ft-sam or grad-prune.",
        )
    return found


@contextmanager
def steady_statistics(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are inside the block, also in train mode.

    Batches are still normalized by their own statistics there.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [n.clone() if (n := norm.num_batches_tracked) is not None else None for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
