"""Adversarial examples that two networks share: both say the same wrong class.

Paper: Wei, Zhang, Zha, Wu: Shared Adversarial Unlearning, NeurIPS 2023 (arXiv 2307.10562), its
inner maximization.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from excise.types import Images, Labels

__all__ = ["jensen_shannon", "shared_examples"]


def shared_examples(
    model: nn.Module,
    reference: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    weights: tuple[float, float],
) -> Images:
    """Return images near ``images`` that both networks call the same wrong class, where it can.

    Wrong means: not what the same network says of the image as it was.

    Args:
        model: h, in eval mode; neither its weights nor their gradients are touched.
        reference: h₀, likewise.
        images: x, ``(n, c, h, w)`` in [0, 1].
        labels: y.
        epsilon: the largest change of a value.
        step_size: the change of one step.
        steps: how many.
        weights: β₁ and β₂.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    moved = high.clone()
    with torch.no_grad():
        said = torch.stack([net(images).argmax(1) for net in (model, reference)])
    active = torch.arange(len(images), device=images.device)
    with torch.enable_grad():
        for _ in range(steps):
            here = moved[active].requires_grad_(True)
            logits = torch.stack([model(here), reference(here)])  # (2, active, k)
            now = logits.detach().argmax(2)
            errs = now != said[:, active]
            searching = ~(errs.all(0) & (now[0] == now[1]))
            if not bool(searching.any()):
                break
            ce = F.cross_entropy(logits.flatten(0, 1), labels[active].repeat(2), reduction="none")
            # β₁/2 · CE of whom is not fooled yet − β₂ · JS; an image's own gradient, hence sums.
            gain = weights[0] / 2 * ce.view(2, -1).masked_fill(errs, 0).sum(0)
            gain = gain - weights[1] * jensen_shannon(logits[0], logits[1])
            (gradient,) = torch.autograd.grad(gain[searching].sum(), here)
            active = active[searching]
            there = here.detach()[searching] + step_size * gradient[searching].sign()
            moved[active] = torch.clamp(there, low[active], high[active])
    return moved


def jensen_shannon(one: Float[Tensor, "n k"], other: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return the Jensen-Shannon divergence, in nats, of the softmaxes of two sets of logits."""
    p, q = one.log_softmax(1), other.log_softmax(1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(1)
