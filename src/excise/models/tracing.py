"""Which filters a network has, which batch norm belongs to which, and which are gates.

Found by walking the autograd graph of one forward pass, never by the names or the order of
modules: what a convolution feeds is a matter of the forward code alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from excise.errors import ModelError
from excise.models.checking import logits_of
from excise.models.gates import gate_nodes
from excise.models.graph import Node, inputs, is_batch_norm, is_convolution, leaves, walk
from excise.models.modes import copy_of, device_of, dtype_of
from excise.types import Images

__all__ = ["Unit", "prunable", "trace"]


@dataclass(frozen=True)
class Unit:
    """One convolution: a row of filters that can be silenced one by one.

    Args:
        layer: qualified name of the convolution.
        filters: how many output filters it has.
        owner: qualified name of its owner, the batch norm whose input is exactly this
            convolution's output; None where there is none, or not exactly one.
        gate: whether it computes the factors of a squeeze-excite block; silenced, such a filter
            multiplies by one half instead of removing anything.
    """

    layer: str
    filters: int
    owner: str | None
    gate: bool


def trace(model: nn.Module, example: Images) -> tuple[Unit, ...]:
    """Return one unit per ``Conv2d`` that takes part, in the order of their first execution.

    The model is untouched: a copy of it runs, in eval mode, on the first image of ``example``.

    Args:
        model: any classifier of images; its forward pass has to be ordinary torch code.
        example: images ``(n, c, h, w)`` of the size it classifies; one is enough.

    Raises:
        ModelError: the forward pass fails, or leaves no graph (compiled or scripted networks).
    """
    # inference_mode(False): its tensors take part in no graph, whatever the caller is in.
    with torch.inference_mode(False), torch.enable_grad():
        twin = copy_of(model).eval()
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        image = example[:1].detach().clone().to(device_of(twin), dtype_of(twin))
        end = logits_of(twin, image).grad_fn
    convs = {name: m for name, m in twin.named_modules() if isinstance(m, nn.Conv2d)}
    if end is None:
        if convs:
            raise ModelError(
                "a forward pass that autograd can follow",
                got="logits without a graph",
                remedy="Give the plain module: not compiled, not scripted, no torch.no_grad in it.",
            )
        return ()
    return _units(twin, convs, list(walk(end)))


def prunable(units: Iterable[Unit], *, include_gates: bool = False) -> tuple[Unit, ...]:
    """Return the units a method may prune, in their order: all but gates, unless they are asked."""
    return tuple(unit for unit in units if include_gates or not unit.gate)


def _units(twin: nn.Module, convs: dict[str, nn.Conv2d], nodes: Sequence[Node]) -> tuple[Unit, ...]:
    layers = _uses(convs, (node for node in nodes if is_convolution(node)))
    gates = gate_nodes(nodes)
    owners = _owners(twin, nodes)
    first = {layer: min(node._sequence_nr() for node in used) for layer, used in layers.items()}
    return tuple(
        Unit(
            layer=layer,
            filters=convs[layer].out_channels,
            # A convolution that runs twice feeds two places: nothing belongs to it alone.
            owner=owners.get(layers[layer][0]) if len(layers[layer]) == 1 else None,
            gate=all(node in gates for node in layers[layer]),
        )
        for layer in sorted(first, key=lambda layer: first[layer])
    )


def _uses(convs: dict[str, nn.Conv2d], nodes: Iterable[Node]) -> dict[str, list[Node]]:
    """Return the graph nodes of every convolution, found through the weights they read."""
    names = {id(p): name for name, conv in convs.items() for p in conv.parameters()}
    uses: dict[str, list[Node]] = {}
    for node in nodes:
        # Input, weight, bias. A weight may itself be computed (weight norm, standardization).
        read = {names[key] for key in map(id, leaves(inputs(node)[1])) if key in names}
        for name in read:
            uses.setdefault(name, []).append(node)
    return uses


def _owners(twin: nn.Module, nodes: Sequence[Node]) -> dict[Node, str]:
    """Return the name of the one batch norm that each convolution node alone feeds."""
    names = {id(p): n for n, m in twin.named_modules() for p in m.parameters(recurse=False)}
    norms = [node for node in nodes if is_batch_norm(node)]
    scales = [[id(p) for p in leaves(inputs(node)[1])] if inputs(node)[1] else [] for node in norms]
    owners: dict[Node, list[str]] = {}
    for node, scale in zip(norms, scales, strict=True):
        fed_by = inputs(node)[0]
        if fed_by is not None and is_convolution(fed_by):
            # Without γ there is nothing to own; a norm used twice does not belong to one alone.
            known = len(scale) == 1 and scale[0] in names and scales.count(scale) == 1
            owners.setdefault(fed_by, []).append(names[scale[0]] if known else "")
    return {conv: found[0] for conv, found in owners.items() if len(found) == 1 and found[0]}
