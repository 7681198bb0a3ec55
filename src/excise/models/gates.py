"""Find squeeze-excite convolutions: x · gate(pool(x)), in the autograd graph.

Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018 (arXiv 1709.01507).
"""

from __future__ import annotations

from collections.abc import Collection

from excise.models.graph import Node, inputs, is_convolution

__all__ = ["gate_nodes"]

# Reductions over all pixels (a mean may be one over channels, as spatial attention has it), and
# poolings over a window, which count only where they pool the very tensor that is gated.
_REDUCTIONS = ("Mean", "Amax", "AdaptiveAvgPool", "AdaptiveMaxPool")
_POOLINGS = ("AvgPool2D", "MaxPool2D")
# What changes the form of a tensor and nothing else.
_FORMS = ("View", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Clone", "Permute", "Transpose")


def gate_nodes(nodes: Collection[Node]) -> set[Node]:
    """Return the convolution nodes that only compute factors of a squeeze-excite product."""
    gates: set[Node] = set()
    for node in nodes:
        if node.name().startswith("MulBackward"):
            left, right = (*inputs(node), None)[:2]
            if left is not None and right is not None:
                small, large = _pixels(node, "other"), _pixels(node, "self")
                gates |= _behind(right, left, shrinks=small == 1 < large)
                gates |= _behind(left, right, shrinks=large == 1 < small)
    return gates


def _behind(factor: Node, gated: Node, *, shrinks: bool) -> set[Node]:
    """Return the convolutions between a factor and the pooling it comes from; else nothing.

    A pooling ends the walk. Where the walk gets past all poolings to the image, the factor is
    no gate. A pooling tells a gate if it pools the gated tensor itself, or if the factor is one
    pixel and the gated tensor is larger (``shrinks``).
    """
    gated = _before_forms(gated)
    found: set[Node] = set()
    pools_gated = False
    seen, stack = {factor}, [factor]
    while stack:
        node = stack.pop()
        source = inputs(node)[0] if inputs(node) else None
        of_gated = source is not None and _before_forms(source) is gated
        if node is gated:
            continue
        if _is(node, _REDUCTIONS) or (of_gated and _is(node, _POOLINGS)):
            pools_gated |= of_gated
            continue
        if is_convolution(node):
            found.add(node)
            if source is None:  # its input is the image
                return set()
        # Only the first input of a convolution is a tensor of the network; the rest are weights.
        onward = inputs(node)[:1] if is_convolution(node) else inputs(node)
        new = [n for n in onward if n is not None and n not in seen]
        seen.update(new)
        stack += new
    return found if pools_gated or shrinks else set()


def _before_forms(node: Node) -> Node:
    while _is(node, _FORMS) and inputs(node)[0] is not None:
        node = inputs(node)[0]
    return node


def _is(node: Node, kinds: tuple[str, ...]) -> bool:
    return bool(node.name().startswith(kinds))


def _pixels(node: Node, operand: str) -> int:
    """Return how many pixels a factor of the product has; 0 where that is not known."""
    try:
        saved = getattr(node, f"_saved_{operand}")
    except RuntimeError:  # overwritten in place since
        return 0
    # Split attention carries a dimension for its branches: more than four are fine.
    return saved.shape[-1] * saved.shape[-2] if saved is not None and saved.ndim >= 4 else 0
