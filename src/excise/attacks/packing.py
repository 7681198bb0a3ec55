"""A network and its optimizer as named tensors, so that training goes on where it was left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["packed", "unpack"]


def packed(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of all weights, and what the optimizer keeps for each of them.

    Args:
        network: its parameters are the optimizer's, in the same order.
        optimizer: keeps nothing but tensors, as Adam does.
    """
    tensors = {f"network/{name}": value for name, value in network.state_dict().items()}
    for number, kept in optimizer.state_dict()["state"].items():
        tensors |= {f"{number}/{name}": value for name, value in kept.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def unpack(
    tensors: dict[str, Tensor], network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Take up what :func:`packed` gave; tensors of other names are passed over."""
    kept: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part.isdigit():
            kept.setdefault(int(part), {})[name] = value
    prefix = "network/"
    weights = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    network.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": kept, "param_groups": groups})
