"""Batch-norm statistics measured anew, as cumulative averages over all images."""

from __future__ import annotations

import torch
from torch import nn

from excise.models import BatchNorm, in_mode
from excise.types import Images

__all__ = ["re_estimate"]


@torch.no_grad()
def re_estimate(model: nn.Module, images: Images, batch_size: int) -> None:
    """Give every batch norm the mean and variance of what it sees on ``images``, in place.

    Each batch counts by its number of images; the old statistics do not count at all. All else
    runs in eval mode, and flags come back as they were.

    Args:
        model: the network; nothing happens if it has no running statistics.
        images: at least two, in the network's type.
        batch_size: images at a time at most; batches are of nearly equal size.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        with in_mode(model):
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
            for batch in images.tensor_split(-(-len(images) // batch_size)):
                seen += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / seen
                model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
