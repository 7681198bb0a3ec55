"""Fine-tuning that keeps the norm of the loss's gradient small.

Zhao, Zhang, Hu: Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning,
ICML 2022 (arXiv 2202.03599): one more gradient, a step of length r up the first, approximates the
gradient of L + α r ‖∇L‖. Lin et al. (NeurIPS 2024) take the norm of each tensor by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.models import steady_statistics
from excise.types import Images, Labels

__all__ = ["activeness_aware"]


def activeness_aware(
    model: nn.Module, images: Images, labels: Labels, *, radius: float, alpha: float
) -> Tensor:
    """Leave (1 − α) g₁ + α g₂ in the parameters' gradients; return the loss at θ."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(images), labels)
    first = torch.autograd.grad(loss, parameters, allow_unused=True)
    moved = [(p, g, p.detach().clone()) for p, g in zip(parameters, first, strict=True)
             if g is not None]  # fmt: skip
    try:
        with torch.no_grad():
            for parameter, gradient, _ in moved:
                norm = gradient.norm()
                parameter.add_(radius * gradient / norm.where(norm > 0, 1))
        with steady_statistics(model):
            there = F.cross_entropy(model(images), labels)
        second = torch.autograd.grad(there, [p for p, *_ in moved])
    finally:
        with torch.no_grad():
            for parameter, _, was in moved:
                parameter.copy_(was)
    for (parameter, gradient, _), other in zip(moved, second, strict=True):
        parameter.grad = (1 - alpha) * gradient + alpha * other
    return loss.detach()
