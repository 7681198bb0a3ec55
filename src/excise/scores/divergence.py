"""How far what a batch norm remembers is from what clean images give.

Paper: Zheng, Tang, Li, Liu: Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022,
equation 6.
"""

from __future__ import annotations

from torch import Tensor, nn

from excise.models import BatchNorm, remembering, scaled
from excise.models.statistics import input_moments
from excise.scores.lipschitz import outliers
from excise.types import Edit, Edits, Images

__all__ = ["divergence_of", "divergent_channels", "statistics_divergence"]


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


def divergence_of(norm: BatchNorm, mean: Tensor, variance: Tensor) -> Tensor:
    """Return how far the statistics a batch norm remembers are from some others, by channel.

    Args:
        norm: one with running statistics.
        mean: of what goes into it, ``(f,)``.
        variance: likewise.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return statistics_divergence(mean, variance, norm.running_mean, norm.running_var, norm.eps)


def divergent_channels(
    model: nn.Module, images: Images, u: float, *, batch_size: int = 500
) -> Edits:
    """Return the edits that cut the channels whose statistics do not fit clean images (BNP).

    Args:
        model: runs in eval mode; without batch norms that remember there is nothing to cut.
        images: clean ones, in the network's type.
        u: standard deviations above its layer's mean divergence from which a channel stands out.
        batch_size: images at a time; it changes nothing but memory.
    """
    norms = scaled(remembering(model))
    edits: list[Edit] = []
    for name, (mean, variance) in input_moments(model, norms, images, batch_size).items():
        divergence = divergence_of(norms[name], mean, variance)
        edits += [Edit("scale", name, index, 1) for index in outliers(divergence, u)]
    return tuple(edits)
