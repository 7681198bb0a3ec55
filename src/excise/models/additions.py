"""What a defense may add to a network for good: a clamp after a layer, a plug before one.

No network is forked for it: the layer is wrapped, by its name, and the wrapper is part of the saved
network. A bundle's card lists what was added, so that loading can add it again before the weights
come (:mod:`excise.models.bundles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from excise.errors import ModelError, nearest

__all__ = ["ADDITIONS", "Addition", "Clamped", "Plugged", "add", "additions", "split_state"]


class Addition(nn.Module):
    """A layer with something added to it; ``inner`` is the layer as it was.

    Args:
        inner: the layer.
    """

    kind: ClassVar[str]

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training


class Clamped(Addition):
    """A layer none of whose channels gives more than its bound (MM-BM).

    Args:
        inner: a batch norm, convolution or linear layer.

    Raises:
        ModelError: a layer whose number of channels cannot be told.
    """

    kind = "clamp"
    bound: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        weight = _weight(inner)
        channels = _count(inner, ("num_features", "out_channels", "out_features"), self.kind)
        # As good as infinity, which no weights file of ours holds.
        none = torch.finfo(weight.dtype).max
        self.register_buffer("bound", weight.new_full((channels,), none))

    def forward(self, given: Tensor) -> Tensor:
        """Return the layer's output ``(n, c, …)``, each channel at most its bound."""
        output: Tensor = self.inner(given)
        return torch.minimum(output, self.bound.view(-1, *(1,) * (output.ndim - 2)))


class Plugged(Addition):
    """A layer that gets its input through a 1×1 convolution and a batch norm (NPD).

    As it comes it changes nothing but what the batch norm's ε does.

    Args:
        inner: a convolution or batch norm of maps ``(n, c, h, w)``.

    Raises:
        ModelError: a layer whose number of channels cannot be told.
    """

    kind = "plug"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        weight = _weight(inner)
        channels = _count(inner, ("in_channels", "num_features"), self.kind)
        device, dtype = weight.device, weight.dtype
        # skip_init: the weights are set below, and drawing any would move the global generator.
        self.conv = nn.utils.skip_init(
            nn.Conv2d, channels, channels, 1, bias=False, device=device, dtype=dtype
        )
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(channels)[:, :, None, None])
        self.train(inner.training)

    def forward(self, given: Tensor) -> Tensor:
        """Return the layer's output for the plugged input."""
        output: Tensor = self.inner(self.norm(self.conv(given)))
        return output


ADDITIONS: Mapping[str, type[Addition]] = {kind.kind: kind for kind in (Clamped, Plugged)}


def add(model: nn.Module, kind: str, layer: str) -> Addition:
    """Wrap one layer of ``model``, in place, and return the wrapper.

    Args:
        model: a model of your own.
        kind: ``"clamp"`` or ``"plug"``.
        layer: qualified name of the layer.

    Raises:
        ModelError: an unknown kind, no such layer, one that already has an addition, or one that
            cannot take it.
    """
    if kind not in ADDITIONS:
        raise ModelError("a clamp or a plug", got=repr(kind), remedy=nearest(kind, ADDITIONS))
    names = dict(model.named_modules())
    if layer not in names or not layer:
        raise ModelError("a layer of the model", got=repr(layer), remedy=nearest(layer, names))
    parent = names[layer.rpartition(".")[0]]
    if isinstance(names[layer], Addition) or isinstance(parent, Addition):
        raise ModelError(
            "a layer to which nothing was added yet",
            got=repr(layer),
            remedy="Name another layer, or start from the network as it was given.",
        )
    addition = ADDITIONS[kind](names[layer])
    model.set_submodule(layer, addition)
    return addition


def additions(model: nn.Module) -> list[tuple[str, str]]:
    """Return kind and layer of everything that was added to ``model``, in the order of modules."""
    return [(m.kind, name) for name, m in model.named_modules() if isinstance(m, Addition)]


def split_state(
    state: Mapping[str, Tensor], layers: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the network as it was before additions, and those of the additions.

    Args:
        state: the weights of a network with additions.
        layers: the layers that have one.
    """
    plain: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer is None:
            plain[name] = tensor
        elif name.startswith(f"{layer}.inner."):
            plain[f"{layer}.{name.removeprefix(f'{layer}.inner.')}"] = tensor
        else:
            added[name] = tensor
    return plain, added


def _weight(inner: nn.Module) -> Tensor:
    for tensor in (*inner.parameters(), *inner.buffers()):
        if tensor.is_floating_point():
            return tensor.detach()
    raise ModelError(
        "a layer with weights", got=type(inner).__name__, remedy="Name a convolution or norm."
    )


def _count(inner: nn.Module, names: tuple[str, ...], kind: str) -> int:
    for name in names:
        if isinstance(count := getattr(inner, name, None), int):
            return count
    raise ModelError(
        f"a layer that can take a {kind}: a convolution or a batch norm",
        got=type(inner).__name__,
        remedy="Name another layer.",
    )
