"""Does the network know these images at all? What is said before hours of work, and beside it."""

from __future__ import annotations

import math

from torch import nn

from excise.evaluation import Evaluation, Finding, evaluate, near_chance
from excise.models import device_of, dtype_of, remembering
from excise.models.statistics import input_moments
from excise.types import LabelledImages

__all__ = ["doubts", "unlike_training"]

#: How many times larger or smaller the variance before the first batch norm may be than it was in
#: training. Of the zoo's networks it is less than 2 times smaller on clean images (random crops
#: have black borders) and 5 to 25 times without the mean and deviation they were trained with.
FOLD = 4.0
#: How many of its standard deviations the mean there may be off; of the zoo's networks .1 at most,
#: and 1.3 to 2 where images in [0, 1] are normalized though those in training were not.
SHIFT = 1.0
#: A channel of less variance than this share of the largest is dead, and any ratio of it is noise.
_DEAD = 1e-4
#: Images at a time: few enough for 224 × 224 pixels.
_BATCH = 50


def doubts(
    model: nn.Module, images: LabelledImages, measured: Evaluation | None = None
) -> tuple[Finding, ...]:
    """Return why figures of this network on these images may mean nothing.

    Args:
        model: the network as it was given.
        images: clean ones with true labels.
        measured: how it does on clean images, if that is known already.
    """
    measured = evaluate(model, images) if measured is None else measured
    return (*near_chance(measured), *unlike_training(model, images))


def unlike_training(model: nn.Module, images: LabelledImages) -> tuple[Finding, ...]:
    """Images that are prepared otherwise than in training, mostly a wrong ``--mean`` or ``--std``.

    A network so treated often answers well above chance, and nothing else tells. What remembers is
    the first batch norm; without any, nothing is found.
    """
    pixels = images.to(device_of(model)).floats().to(dtype_of(model))
    moments = input_moments(model, remembering(model), pixels, _BATCH)
    if not moments:
        return ()
    name, (mean, variance) = next(iter(moments.items()))
    norm = remembering(model)[name]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    live = norm.running_var > _DEAD * norm.running_var.max()
    known = norm.running_var + norm.eps
    ratio = float((variance / known)[live].median())
    shift = float(((mean - norm.running_mean).abs() / known.sqrt())[live].median())
    if 1 / FOLD <= ratio <= FOLD and shift <= SHIFT:
        return ()
    if 1 / FOLD <= ratio <= FOLD:
        said = f"lies {shift:.1f} standard deviations from what it remembers"
    else:
        times, word = (1 / ratio if ratio else math.inf, "less") if ratio < 1 else (ratio, "more")
        count = f"{times:.0f}" if times < 1000 else "over 1000"
        said = f"varies {count} times {word} than it remembers"
    message = (
        f"The images are not prepared as in training: what goes into the first batch norm {said}, "
        "so that nothing said of this network can be relied on. Check --mean and --std, and "
        "whether it was trained on pixels in [0, 1]."
    )
    return (Finding("unlike-training", "problem", message),)
