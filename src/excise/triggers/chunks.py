"""How a trigger's network is run so that no image's result depends on the batch it came in.

Convolution libraries choose their method by the size of the batch and the layout of the memory, and
methods differ in the last bit. So every call sees the same: ``CHUNK`` images in fresh, contiguous
memory, filled up with black ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from excise.types import Images

__all__ = ["CHUNK", "in_chunks"]

CHUNK = 8


def in_chunks(network: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """Return ``network(images)`` in float32, without gradients, a fixed number at a time.

    Args:
        network: from ``(CHUNK, c, h, w)`` float32 to as many results, each image for itself.
        images: ``(n, c, h, w)`` in any floating type and layout; n may be 0.
    """
    n, *shape = images.shape
    results = []
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        # At least one call, so that no images give no results of the right shape.
        for start in range(0, max(n, 1), CHUNK):
            part = images[start : start + CHUNK]
            chunk = torch.zeros(CHUNK, *shape, device=images.device)
            chunk[: len(part)] = part
            results.append(network(chunk)[: len(part)])
    return torch.cat(results)
