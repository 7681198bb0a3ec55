"""Upper bound of each channel's Lipschitz constant, and how far a batch norm's statistics are off.

Papers: Zheng, Tang, Li, Liu: Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022
(arXiv 2208.03111), equation 8; Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor
Neurons, NeurIPS 2022, equation 6.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["channel_lipschitz", "outliers", "statistics_divergence"]


def channel_lipschitz(
    weight: Float[Tensor, "f i k l"], gamma: Tensor, variance: Tensor, eps: float
) -> Float[Tensor, " f"]:
    """Return σ_max(W_c) · |γ_c| / √(v_c + ε) of every filter, W_c reshaped to ``(i, k·l)``.

    Args:
        weight: of the convolution.
        gamma: γ of its owner batch norm, ``(f,)``.
        variance: the running variance v, ``(f,)``.
        eps: the batch norm's ε.
    """
    norms: Tensor = torch.linalg.matrix_norm(weight.flatten(2), ord=2)
    return norms * gamma.abs() / (variance + eps).sqrt()


def statistics_divergence(
    mean: Tensor, variance: Tensor, running_mean: Tensor, running_variance: Tensor, eps: float
) -> Tensor:
    """Return KL(N(μ̂, v̂) ‖ N(μ, v)) = ½ ln(v/v̂) + (v̂ + (μ̂ − μ)²) / 2v − ½ of every channel.

    Args:
        mean: μ̂ of what goes into the batch norm on clean images, ``(f,)``.
        variance: v̂ likewise.
        running_mean: μ, what the batch norm remembers of its training.
        running_variance: v likewise.
        eps: added to both variances, as the batch norm adds it; a dead channel has none.
    """
    v, clean = running_variance + eps, variance + eps
    return 0.5 * (v / clean).log() + (clean + (mean - running_mean).square()) / (2 * v) - 0.5


def outliers(scores: Float[Tensor, " f"], u: float) -> list[int]:
    """Return which scores lie more than ``u`` standard deviations above the mean of their layer.

    The deviation is the unbiased one; a layer of fewer than two channels has no outlier.
    """
    if len(scores) < 2:
        return []
    return (scores > scores.mean() + u * scores.std()).nonzero().flatten().tolist()
