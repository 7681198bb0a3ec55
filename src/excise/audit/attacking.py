"""What the audits share: which trigger to attack with, how often it works, how large it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn

from excise.errors import ModelError
from excise.inversion.measure import changes
from excise.models import device_of, dtype_of, in_mode
from excise.models.checking import logits_of
from excise.rates import CONFIDENCE, Interval, Rate
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Images,
    Inverter,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    Trigger,
    round_to_8_bits,
)

__all__ = [
    "LOW",
    "check_pair",
    "flips",
    "floor_from",
    "floor_of",
    "others",
    "predictions",
    "size_of",
    "trigger_of",
    "working",
]

#: A rate that no verdict minds either, however many classes there are.
LOW = 0.05


def check_pair(given: nn.Module, repaired: nn.Module, data: LabelledImages) -> None:
    """Refuse two networks that do not tell the classes of ``data`` apart.

    Raises:
        ModelError: one of them gives another number of logits, or fails on an image.
    """
    image = data.subset(torch.tensor([0])).floats()
    for name, model in (("given", given), ("repaired", repaired)):
        with in_mode(model), torch.no_grad():
            logits = logits_of(model, image.to(device_of(model), dtype_of(model)))
        if logits.shape[1] != data.num_classes:
            raise ModelError(
                f"a {name} network of {data.num_classes} classes, as the images have",
                got=f"{logits.shape[1]} outputs",
                remedy="Give the network before its repair and the same network after it.",
            )


def others(data: LabelledImages, target: int) -> LabelledImages | None:
    """Return the images of every class but ``target``; None if there is none."""
    index = torch.nonzero(data.labels != target).flatten()
    return data.subset(index) if len(index) else None


def predictions(model: nn.Module, trigger: Trigger | None, data: LabelledImages) -> torch.Tensor:
    """Return the class a network gives each image, with the trigger on it if there is one.

    What is looked at is what a picture file carries: values are rounded to 8 bits.
    """
    found = []
    with in_mode(model), torch.no_grad():
        for images, _ in data.batches(256):
            x = images.to(device_of(model), dtype_of(model))
            x = round_to_8_bits(trigger(x)) if trigger is not None else x
            found.append(model(x).argmax(1).cpu())
    return torch.cat(found)


def flips(model: nn.Module, trigger: Trigger | None, target: int, data: LabelledImages) -> Rate:
    """Return how many images of other classes a network calls ``target``.

    Args:
        model: used in eval mode; comes back as it was.
        trigger: put on the images; None leaves them clean.
        target: the class.
        data: images nobody attacked with.
    """
    some = others(data, target)
    if some is None:
        return Rate(0, 0)
    return Rate.of((predictions(model, trigger, some) == target).numpy())


def floor_of(model: nn.Module, target: int, data: LabelledImages) -> float:
    """Return what reaches ``target`` without any trigger: by chance, or by the network's errors."""
    return floor_from(flips(model, None, target, data), data.num_classes)


def floor_from(clean: Rate, classes: int) -> float:
    """Return the same from how often clean images reach the class: the upper end of that rate."""
    return max(1 / classes, LOW, clean.high if clean.n else 0.0)


def size_of(trigger: Trigger, images: Images) -> Interval:
    """Return the L1 norm of what the trigger changes, averaged over images, in pixels.

    The interval is Student's, over the images; of a single image nothing is known but that no
    change is larger than the image.
    """
    sizes = changes(trigger, images).cpu().numpy()
    mean, n = float(sizes.mean()), len(sizes)
    if n == 1:
        return Interval(mean, 0.0, float(images[0].numel()))
    half = float(student.ppf(0.5 + CONFIDENCE / 2, n - 1) * np.std(sizes, ddof=1) / np.sqrt(n))
    return Interval(mean, max(0.0, mean - half), mean + half)


def working(
    model: nn.Module,
    found: Iterable[RecoveredTrigger],
    train: LabelledImages,
    held: LabelledImages,
) -> RecoveredTrigger | None:
    """Return the first trigger that works on held-back images, with its class; None if none does.

    A trigger works where the whole interval of its rate lies above :func:`floor_of`. Where its
    class is not known it is the one that most triggered training images are called.
    """
    for one in found:
        target = one.target
        if target is None:
            target = int(predictions(model, one, train).mode().values)
        rate = flips(model, one, target, held)
        if rate.low > floor_of(model, target, held):
            return replace(one, target=target)
    return None


def trigger_of(
    inverter: Inverter,
    given: nn.Module,
    data: DefenderData,
    rng: Rng,
    known: RecoveredTrigger | None,
    on_round: OnRound,
) -> RecoveredTrigger | None:
    """Return the known trigger, or else one recovered, if it works on the given network."""
    found = [known] if known else inverter.fit(given, data, rng.child("invert"), on_round=on_round)
    return working(given, found, data.train, data.held_out("an audit"))
