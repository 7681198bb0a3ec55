"""Perturbations that lead each image to its second best class: targeted, in an L2 ball.

Paper: Zhu, Wei, Zha, Wu: Neural Polarizer, NeurIPS 2023 (arXiv 2306.16697), its inner problem.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from excise.types import Images, Labels

__all__ = ["best_but", "runner_up_examples"]


def best_but(logits: Float[Tensor, "n k"], labels: Labels) -> Labels:
    """Return the class of the largest logit that is not the label's, one of each image."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def runner_up_examples(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: float,
    steps: int,
    step_size: float,
    enough: float,
) -> tuple[Images, Labels, Labels]:
    """Return x', what ``model`` says of x, and t, each image's best class but its own.

    Sign steps that lower CE(f(x + δ), t), each back into the ball ‖δ‖₂ ≤ ρ; pixels stay in [0, 1].

    Args:
        model: in eval mode; gradients of its weights are neither computed nor touched.
        images: x, ``(n, c, h, w)`` in [0, 1].
        labels: true labels.
        norm: ρ.
        steps: how many at most.
        step_size: change of a pixel in one step, before it goes back into the ball.
        enough: share of the images called t above which no further step is taken.
    """
    with torch.enable_grad():
        delta = torch.zeros_like(images, requires_grad=True)
        logits = model(images + delta)
        said, target = logits.detach().argmax(1), best_but(logits, labels)
        for step in range(steps):
            if step:
                logits = model((images + delta).clamp(0, 1))
                if float((logits.detach().argmax(1) == target).float().mean()) > enough:
                    break
            # The sum, so that an image's gradient does not depend on how many there are.
            loss = F.cross_entropy(logits, target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            moved = delta.detach() - step_size * gradient.sign()
            length = moved.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            delta = (moved * (norm / length).clamp(max=1)).requires_grad_(True)
    return (images + delta.detach()).clamp(0, 1), said, target
