"""Sharpness-aware steps: go downhill by the gradient at the worst weights nearby.

Paper: Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization, ICLR 2021 (arXiv
2010.01412); adaptive: Kwon, Kim, Park, Choi: ASAM, ICML 2021 (arXiv 2102.11600).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from excise.models import steady_statistics

__all__ = ["moved_by", "perturbation", "sam_step"]


@torch.no_grad()
def perturbation(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adaptive: bool
) -> list[Tensor]:
    """Return e, the step to the worst weights nearby, to first order.

    e = ρ · T² ⊙ g / ‖T ⊙ g‖₂ with T = |w|, or T = 1 where it is not adaptive; the norm is over
    all tensors together.

    Args:
        weights: w, tensors of any shapes.
        gradients: g, of the loss at w; of the same shapes.
        rho: ρ, how far: ‖e / T‖₂.
        adaptive: measure the way in multiples of each weight.
    """
    w, g = list(weights), list(gradients)
    scaled = torch._foreach_mul(torch._foreach_abs(w), g) if adaptive else g
    norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(scaled))))
    # A gradient of zero has no direction: e = 0, not 0 / 0.
    steps = torch._foreach_mul(g, rho / (norm + 1e-12))
    if adaptive:
        torch._foreach_mul_(steps, torch._foreach_mul(w, w))
    return list(steps)


@contextmanager
def moved_by(weights: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add ``steps`` to ``weights`` inside the block; the weights are the very same after it."""
    moved = list(weights)
    with torch.no_grad():
        # Copies, not a subtraction: (w + e) − e need not be w.
        kept = [weight.clone() for weight in moved]
        torch._foreach_add_(moved, list(steps))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, kept)


def sam_step(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[], Tensor],
    *,
    rho: float,
    adaptive: bool = True,
) -> Tensor:
    """Take one step of ``optimizer`` by the gradient at w + e, and return the loss at w.

    Batch norm's running statistics follow the first of the two forward passes alone.

    Args:
        model: what trains.
        optimizer: over its parameters.
        loss: runs the model; called twice.
        rho: see :func:`perturbation`.
        adaptive: likewise.
    """
    optimizer.zero_grad()
    at_w = loss()
    at_w.backward()
    moving = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in moving if p.grad is not None]
    steps = perturbation(moving, gradients, rho, adaptive=adaptive)
    optimizer.zero_grad()
    with moved_by(moving, steps), steady_statistics(model):
        loss().backward()
    optimizer.step()
    return at_w
