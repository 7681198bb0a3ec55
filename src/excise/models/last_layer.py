"""The last linear layer of a network, found by running it, and the features that go into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from excise.errors import ModelError
from excise.models.surgery import FOLD
from excise.types import Images

__all__ = ["inputs_of", "last_layer", "most_connected"]


def last_layer(network: nn.Module, images: Images) -> nn.Linear:
    """Return the linear layer whose outputs are the network's logits, with a weight to work on.

    Raises:
        ModelError: there is none, or its weight is computed from other parameters: what is
            written into that is gone at once.
    """
    outputs: list[tuple[nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs.append((module, output)))
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    for module, output in outputs:
        if output is not logits:
            continue
        if "weight" not in dict(module.named_parameters(recurse=False)):
            raise ModelError(
                "a weight of its own in the last layer",
                got="one computed from other parameters (weight norm, a parametrization)",
                remedy=FOLD,
            )
        return module
    raise ModelError(
        "a network whose last step is a linear layer, whose inputs are its features",
        got=type(network).__name__,
        remedy="Choose another network, or a method that needs no features.",
    )


def most_connected(layer: nn.Linear, count: int) -> Tensor:
    """Return the ``count`` inputs of the layer with the largest sum of |weight|, largest first.

    Raises:
        ModelError: it has fewer inputs.
    """
    if count > layer.in_features:
        raise ModelError(
            f"a last layer with at least {count} inputs",
            got=f"{layer.in_features}",
            remedy="Choose fewer neurons.",
        )
    return layer.weight.detach().abs().sum(0).argsort(descending=True, stable=True)[:count]


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what goes into ``layer``, with its gradients, while the block runs."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
