"""A short name for the weights of a network, to tell two of them apart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["weights_hash"]

#: 64 bits: any two of a million networks share one with a probability below 10⁻⁷.
_DIGITS = 16


def weights_hash(model: nn.Module) -> str:
    """Return a hash of a network's state: names, types, shapes and numbers, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):  # a module may keep anything there
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]
