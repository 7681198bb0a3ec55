"""Where in a network something late can be plugged in, found by tracing or named by hand."""

from __future__ import annotations

import torch
from torch import nn

from excise.errors import ModelError
from excise.models.additions import Plugged, add
from excise.models.checking import logits_of
from excise.models.last_layer import inputs_of
from excise.models.modes import device_of, dtype_of
from excise.models.tracing import prunable, trace
from excise.types import Images

__all__ = ["late_layer", "plugged"]


def late_layer(model: nn.Module, images: Images, method: str) -> str:
    """Return the last convolution, gates aside, that has a batch norm of its own.

    Where none has one, it is the last convolution; never the first, which sees the image.

    Args:
        model: the network; comes back as it was.
        images: ``(n, c, h, w)`` of the size it classifies; one is enough.
        method: who asks, for the message.

    Raises:
        ModelError: there is none but the first.
    """
    late = prunable(trace(model, images))[1:]
    if not late:
        raise ModelError(
            f"a network with convolutions after its first, one of which {method} stands before",
            got=f"{type(model).__name__} without any",
            remedy="Name a layer (layer=), or choose a defense that plugs nothing in.",
        )
    return ([unit for unit in late if unit.owner] or late)[-1].layer


def plugged(model: nn.Module, layer: str, images: Images) -> Plugged:
    """Put a plug before ``layer``, in place: give a model of your own, in eval mode.

    Args:
        model: the network.
        layer: qualified name of a convolution or batch norm.
        images: ``(n, c, h, w)`` of the size it classifies; the first passes through once.

    Raises:
        ModelError: no such layer, one that cannot take a plug, or one that is never run.
    """
    plug = add(model, "plug", layer)
    assert isinstance(plug, Plugged)
    with torch.no_grad(), inputs_of(plug) as seen:
        logits_of(model, images[:1].to(device_of(model), dtype_of(model)))
    if not seen:
        raise ModelError(
            "a layer that takes part in the forward pass",
            got=repr(layer),
            remedy="Name another layer, or none: it is found by tracing.",
        )
    return plug
