"""Perturb the scales and shifts of batch norms so that a batch is misread (ANP's inner problem).

Paper: Wu, Wang: Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021 (arXiv
2110.14430), equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.training.masks import Masked
from excise.types import Images, Labels

__all__ = ["perturbed"]


def perturbed(
    masked: Masked,
    images: Images,
    labels: Labels,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    """Return m + δ for every γ and 1 + ξ for every β, δ and ξ within ±ε raising the loss.

    Args:
        masked: the network with its masks, by the names of γ (``"NORM.weight"``).
        images: a batch.
        labels: its labels.
        epsilon: ε.
        steps: sign steps of ε / steps from a start drawn uniformly.
        generator: on the images' device.
    """
    base = {name: mask.detach() for name, mask in masked.masks.items()}
    # ξ multiplies β, which has the name of γ but for its last part.
    base |= {
        f"{name.removesuffix('weight')}bias": torch.ones_like(mask) for name, mask in base.items()
    }
    change = {
        name: torch.empty_like(mask).uniform_(-epsilon, epsilon, generator=generator)
        for name, mask in base.items()
    }
    for _ in range(steps):
        changed = {name: base[name] + value.requires_grad_() for name, value in change.items()}
        loss = F.cross_entropy(masked(images, changed), labels)
        gradients = torch.autograd.grad(
            loss, list(change.values()), allow_unused=True, materialize_grads=True
        )
        change = {
            name: (value.detach() + epsilon / steps * gradient.sign()).clamp_(-epsilon, epsilon)
            for (name, value), gradient in zip(change.items(), gradients, strict=True)
        }
    own = {**masked.masks, **{name: base[name] for name in base if name not in masked.masks}}
    return {name: mask + change[name] for name, mask in own.items()}
