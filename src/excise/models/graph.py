"""The autograd graph of a forward pass, as far as tracing has to read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["Node", "inputs", "is_batch_norm", "is_convolution", "leaves", "walk"]

#: A node of the graph: the backward of one operation. Held on to, it keeps its identity.
Node = Any


def inputs(node: Node) -> tuple[Node | None, ...]:
    """Return what computed each input of the operation; None for what carries no gradient."""
    return tuple(source for source, _ in node.next_functions)


def walk(end: Node) -> Iterator[Node]:
    """Yield every node before ``end``, and ``end`` itself, each once."""
    seen = {end}
    stack = [end]
    while stack:
        node = stack.pop()
        yield node
        new = [source for source in inputs(node) if source is not None and source not in seen]
        seen.update(new)
        stack += new


def leaves(end: Node) -> Iterator[Tensor]:
    """Yield the parameters that ``end`` was computed from."""
    for node in walk(end):
        if hasattr(node, "variable"):
            yield node.variable


def is_convolution(node: Node) -> bool:
    """Return whether the node is a convolution (of any number of dimensions)."""
    return "Convolution" in node.name()


def is_batch_norm(node: Node) -> bool:
    """Return whether the node is a batch norm, whichever library computed it."""
    return "BatchNorm" in node.name()
