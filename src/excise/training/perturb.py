"""Adversarial perturbations: projected gradient steps (PGD) and targeted DeepFool.

Papers: Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to
Adversarial Attacks, ICLR 2018 (arXiv 1706.06083), section 2.1; Moosavi-Dezfooli, Fawzi, Frossard:
DeepFool, CVPR 2016 (arXiv 1511.04599), equation 9.

Both work on a batch at once and ask autograd for the images' gradients alone: the parameters'
are neither computed nor touched, so that a network in the middle of its training can be given.
Batch norm sees no batch, since the network is in eval mode while they work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from excise.models import in_mode
from excise.types import Images, Labels

__all__ = ["deepfool", "pgd"]


def pgd(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Images:
    """Return the images moved inside the ℓ∞ ball of radius ε, and inside [0, 1], by sign steps.

    Args:
        model: a network over images in [0, 1], on their device; comes back as it was given.
        images: ``(n, c, h, w)`` in [0, 1]; stay as they are.
        labels: of the class each image is moved away from, or towards if ``targeted``.
        epsilon: the largest change of a value, in the units of [0, 1] images.
        step_size: α, the change of one step in the same units.
        steps: how many; 0 gives the start.
        targeted: lower the loss of ``labels`` instead of raising it.
        generator: on the images' device; draws a start inside the ball. None: start at the images.
    """
    given = images.detach()
    low, high = (given - epsilon).clamp_(min=0), (given + epsilon).clamp_(max=1)
    moved = given.clone()
    if generator is not None:
        start = torch.empty_like(given).uniform_(-epsilon, epsilon, generator=generator)
        moved = (given + start).clamp_(0, 1)
    step = -step_size if targeted else step_size
    with in_mode(model), torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_(True)
            # The sum, so that an image's gradient does not depend on how many there are.
            loss = F.cross_entropy(model(moved).float(), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = torch.clamp(moved.detach().add_(gradient.sign_(), alpha=step), low, high)
    return moved


def deepfool(
    model: nn.Module,
    images: Images,
    target: int,
    *,
    overshoot: float = 0.02,
    max_steps: int = 200,
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, " n"]]:
    """Return the small ℓ2 perturbation that takes each image over the border of ``target``.

    A step goes to where target and the image's present class would tie if the network were
    linear: r = |f_t − f_k| / ‖w‖² · w with w = ∇f_t − ∇f_k; their sum, times 1 + overshoot, is
    the perturbation. Images do not wait for each other: one that has arrived is left alone.

    Args:
        model: a network on the images' device; comes back as given. Its outputs are logits, or
            whatever else is to be taken for linear.
        images: ``(n, c, h, w)``; a perturbation on them may have left [0, 1], and nothing is
            clipped.
        target: the class to reach.
        overshoot: how much farther than the border, as a fraction.
        max_steps: gives up there.

    Returns:
        The perturbations, and which images the network calls ``target`` with them on.
    """
    given = images.detach()
    walked = torch.zeros_like(given)
    reached = torch.zeros(len(given), dtype=torch.bool, device=given.device)
    active = torch.arange(len(given), device=given.device)
    with in_mode(model), torch.enable_grad():
        for step in range(max_steps + 1):
            moved = (given[active] + (1 + overshoot) * walked[active]).requires_grad_(True)
            logits = model(moved).float()
            now = logits.detach().argmax(1)
            there = now == target
            reached[active[there]] = True
            if step == max_steps or bool(there.all()):
                break
            gap = logits[:, target] - logits.gather(1, now[:, None]).squeeze(1)
            # No image's gap depends on another image: the gradient of the sum is every gradient.
            (w,) = torch.autograd.grad(gap.sum(), moved)
            squares = w.flatten(1).square().sum(1)
            r = (gap.detach().abs() / squares)[:, None, None, None] * w
            # Where the gradient vanishes there is no direction to go.
            walked[active] += torch.where(r.isfinite().flatten(1).all(1)[:, None, None, None], r, 0)
            active = active[~there]
    return (1 + overshoot) * walked, reached
