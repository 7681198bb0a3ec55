"""What is known of a trigger once it has been found: how often it works and how much it changes."""

from __future__ import annotations

import torch
from torch import nn

from excise.inversion.masked import flip_rate
from excise.types import DefenderData, Evidence, Images, Trigger

__all__ = ["evidence_of", "mean_change"]


def mean_change(trigger: Trigger, images: Images) -> float:
    """Return the L1 norm of what the trigger changes, averaged over images, in pixels."""
    with torch.no_grad():
        total = sum(float((trigger(some) - some).abs().sum()) for some in images.split(256))
    return total / len(images)


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
