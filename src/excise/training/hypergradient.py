"""The gradient of an outer loss through the solution of an inner problem, by fixed-point iteration.

Grazzi, Franceschi, Pontil, Salzo: On the Iteration Complexity of Hypergradient Computation, ICML
2020 (arXiv 2006.16218), the fixed-point method; I-BAU (Zeng et al., ICLR 2022) unlearns with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["hypergradient"]


def hypergradient(
    inner: Callable[[Tensor], Tensor],
    outer: Callable[[Tensor], Tensor],
    solution: Tensor,
    weights: Sequence[Tensor],
    *,
    rate: float,
    iterations: int,
) -> tuple[list[Tensor], Tensor]:
    """Return the gradient of L_out(δ*(θ), θ) by every weight, and L_out(δ, θ).

    With Φ(δ, θ) = δ − rate · ∂L_in/∂δ, whose fixed point δ* is: v ← 0; ``iterations`` times
    v ← (∂Φ/∂δ)ᵀ v + ∂L_out/∂δ; the gradient is ∂L_out/∂θ + (∂Φ/∂θ)ᵀ v.

    Args:
        inner: L_in of a δ, a number; depends on θ too.
        outer: L_out of a δ, likewise; both without randomness of their own.
        solution: δ, (nearly) a minimum of L_in.
        weights: θ, which need gradients.
        rate: step of Φ; below 2 over the largest curvature of L_in the iteration converges.
        iterations: K, at least 1; 1 gives v = ∂L_out/∂δ.
    """
    # The fast kernels of attention have no second derivative either.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():
        delta = solution.detach().requires_grad_(True)
        loss = outer(delta)
        by_delta, *by_weights = torch.autograd.grad(
            loss, (delta, *weights), allow_unused=True, materialize_grads=True
        )
        (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
        v = by_delta
        for _ in range(iterations - 1):
            # (∂Φ/∂δ)ᵀ v = v − rate · ∂(∂L_in/∂δ · v)/∂δ
            (bent,) = torch.autograd.grad(
                slope, delta, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            v = v - rate * bent + by_delta
        through = torch.autograd.grad(slope, weights, v, allow_unused=True, materialize_grads=True)
    gradients = [
        direct - rate * indirect for direct, indirect in zip(by_weights, through, strict=True)
    ]
    return gradients, loss.detach()


class _TwiceDifferentiable(TorchFunctionMode):
    """Computes the hard sigmoid from what torch can differentiate twice."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))
