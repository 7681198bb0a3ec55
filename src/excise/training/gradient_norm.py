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
from excise.training.sam import moved_by
from excise.types import Images, Labels

__all__ = ["activeness_aware"]


def activeness_aware(
    model: nn.Module, images: Images, labels: Labels, *, radius: float, alpha: float
) -> Tensor:
    """Leave (1 − α) g₁ + α g₂ in the parameters' gradients; return the loss at θ."""
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(images), labels)
    first = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached = [(p, g) for p, g in zip(parameters, first, strict=True) if g is not None]
    moved = [parameter for parameter, _ in reached]
    norms = [gradient.norm() for _, gradient in reached]
    steps = [
        radius * gradient / norm.where(norm > 0, 1)
        for (_, gradient), norm in zip(reached, norms, strict=True)
    ]
    with moved_by(moved, steps):
        with steady_statistics(model):
            there = F.cross_entropy(model(images), labels)
        second = torch.autograd.grad(there, moved)
    for (parameter, gradient), other in zip(reached, second, strict=True):
        parameter.grad = (1 - alpha) * gradient + alpha * other
    return loss.detach()
