"""The main job as one function: a network and clean images in, a repaired network out."""

from __future__ import annotations

from typing import Any

from torch import nn

from excise.data import defender_data, load_images
from excise.models import check_model, device_of
from excise.seeding import Rng
from excise.types import Defense, LabelledImages, OnRound, Repair, ignore_round

__all__ = ["repair"]


def repair(
    model: nn.Module,
    clean: LabelledImages | tuple[Any, Any],
    *,
    method: Defense,
    spc: int | None = None,
    seed: int = 0,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    on_round: OnRound = ignore_round,
) -> Repair:
    """Return a repaired copy of ``model``; the given one is never modified.

    Args:
        model: any network over images in [0, 1]; normalization is part of it.
        clean: images with true labels, or ``(images, labels)``; never test images.
        method: a defense, such as ``GradPrune(inverter=Oracle(trigger))``.
        spc: samples per class, validation included; None uses all the given images.
        seed: stands for every choice made; the same seed gives the same result.
        validation_ratio: share of the images held out to decide by.
        paper_split: take the paper's one extra image per class where the share rounds to none.
        on_round: called with a row of figures after each round.

    Returns:
        The repaired network (``.model``), what was cut (``.edits``), one row a round
        (``.history``), what was assumed (``.assumed``) and remarks (``.notes``).

    Raises:
        DataError: images, labels or their number do not fit.
        ModelError: the network does not fit the images, or has no convolution.
    """
    images = clean if isinstance(clean, LabelledImages) else load_images(clean)
    check_model(model, images.shape, images.num_classes)
    rng = Rng(seed)
    data = defender_data(
        images,
        spc=spc,
        rng=rng.child("sample"),
        validation_ratio=validation_ratio,
        paper_split=paper_split,
        pool="the images given",
    )
    return method.repair(model, data.to(device_of(model)), rng.child("method"), on_round=on_round)
