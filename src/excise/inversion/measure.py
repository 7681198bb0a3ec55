"""What is known of a trigger once it has been found: how often it works and how much it changes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.inversion.masked import flip_rate
from excise.types import DefenderData, Evidence, Images, Trigger

__all__ = ["changes", "evidence_of", "mean_change"]


def changes(trigger: Trigger, images: Images) -> Float[Tensor, " n"]:
    """Return the L1 norm of what the trigger changes in each image, in pixels, as doubles."""
    with torch.no_grad():
        each = [(trigger(some) - some).abs().flatten(1).sum(1) for some in images.split(256)]
    return torch.cat(each).double()


def mean_change(trigger: Trigger, images: Images) -> float:
    """Return the L1 norm of what the trigger changes, averaged over images, in pixels."""
    return float(changes(trigger, images).mean())


def evidence_of(
    model: nn.Module, trigger: Trigger, target: int, data: DefenderData, anomaly: float | None
) -> Evidence:
    """Return the evidence of a trigger that was searched for with the training images.

    Args:
        model: used in eval mode; comes back as it was.
        trigger: a class's.
        target: the class.
        data: the training images say how large the change is, the validation images how often it
            works.
        anomaly: how far the class stands out.
    """
    return Evidence(
        flip_rate=flip_rate(model, trigger, target, data.validation),
        size=mean_change(trigger, data.train.floats()),
        anomaly=anomaly,
    )
