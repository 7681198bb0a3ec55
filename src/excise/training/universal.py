"""One perturbation for all images, found by gradient ascent: a stand-in for an unknown trigger.

I-BAU (Zeng et al., ICLR 2022) and AWM (Chai and Chen, NeurIPS 2022) search it in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from excise.seeding import Rng
from excise.training.fit import batches_of
from excise.types import Images

__all__ = ["universal_perturbation"]


def universal_perturbation(
    network: Callable[[Images], Tensor],
    images: Images,
    rng: Rng,
    *,
    rate: float,
    passes: int,
    batch_size: int,
    penalty: float = 0.0,
) -> Float[Tensor, "1 c h w"]:
    """Return δ, from 0 by SGD on −CE(f(x + δ), argmax f(x)) + penalty · ‖δ‖₂².

    Args:
        network: f, from images to logits; its weights' gradients are neither computed nor touched.
        images: x, ``(n, c, h, w)`` in [0, 1], in the network's type.
        rng: draws the order of images.
        rate: the learning rate.
        passes: how often each image is seen.
        batch_size: images a step.
        penalty: weight of the squared norm.

    Returns:
        δ; x + δ may have left [0, 1], unless the network clamps.
    """
    with torch.no_grad():
        own = torch.cat([network(batch).argmax(1) for batch in images.split(batch_size)])
    delta = torch.zeros_like(images[:1])
    with torch.enable_grad():
        for number in range(passes):
            for index in batches_of(len(images), batch_size, rng.torch(f"{number}", images.device)):
                delta.requires_grad_(True)
                loss = F.cross_entropy(network(images[index] + delta), own[index])
                loss = penalty * delta.square().sum() - loss
                (gradient,) = torch.autograd.grad(loss, delta)
                delta = delta.detach() - rate * gradient
    return delta.detach()
