"""Fingerprints of single images, to find the same picture in two sets."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from excise.seeding import Rng

__all__ = ["fingerprint", "fingerprints"]

HashArray = npt.NDArray[np.uint64]
_BLOCK_BYTES = 1 << 25


def fingerprints(images: Tensor) -> HashArray:
    """Return one 64-bit number an image: equal pictures of equal shape, equal numbers.

    Pictures are compared as an 8-bit file would hold them, so float and uint8 copies of one
    picture agree. The number is Σ pixel · random odd weight mod 2⁶⁴: two pictures that differ
    in one pixel always get different numbers, any other two share one with probability 2⁻⁵⁷ at
    most.

    Args:
        images: ``(n, c, h, w)``, uint8 or float in [0, 1], on any device.

    Returns:
        ``(n,)`` uint64.
    """
    n, size = len(images), images[0].numel() if len(images) else 0
    weights = Rng(0).numpy("image fingerprints").integers(0, 2**64, size, dtype=np.uint64)
    weights |= np.uint64(1)
    found = np.empty(n, dtype=np.uint64)
    # Blocks bound the memory: as 64-bit integers the images are eight times as large.
    block = max(1, _BLOCK_BYTES // max(1, 8 * size))
    for start in range(0, n, block):
        part = images[start : start + block].detach().flatten(1)
        if part.dtype != torch.uint8:
            part = part.clamp(0, 1).mul(255).round_().to(torch.uint8)
        found[start : start + block] = part.cpu().numpy().astype(np.uint64) @ weights
    return found


def fingerprint(images: Tensor) -> str:
    """Return one hash of all images in their order, of shape ``(n, c, h, w)``."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(fingerprints(images).astype("<u8").tobytes())
    return digest.hexdigest()
