"""Upper bound of each channel's Lipschitz constant, and what stands out in a layer.

Paper: Zheng, Tang, Li, Liu: Data-free Backdoor Removal based on Channel Lipschitzness, ECCV 2022
(arXiv 2208.03111), equation 8.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["channel_lipschitz", "outliers", "spectral_norms"]


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
    return spectral_norms(weight.flatten(2)) * gamma.abs() / (variance + eps).sqrt()


def spectral_norms(matrices: Float[Tensor, "n a b"]) -> Float[Tensor, " n"]:
    """Return the largest singular value of every matrix.

    As the root of the largest eigenvalue of the smaller Gram matrix, in double precision: a GPU
    takes singular values of thousands of 512 × 9 matrices one after the other, for a minute.
    """
    wide = matrices.double()
    if wide.shape[1] > wide.shape[2]:
        wide = wide.mT
    largest: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)[..., -1]
    # Rounding leaves a matrix of zeros, or nearly so, an eigenvalue just below 0.
    return largest.clamp(min=0).sqrt().to(matrices.dtype)


def outliers(scores: Float[Tensor, " f"], u: float) -> list[int]:
    """Return which scores lie more than ``u`` standard deviations above the mean of their layer.

    The deviation is the unbiased one; a layer of fewer than two channels has no outlier.
    """
    if len(scores) < 2:
        return []
    return (scores > scores.mean() + u * scores.std()).nonzero().flatten().tolist()
