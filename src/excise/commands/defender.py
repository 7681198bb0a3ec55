"""Which images of a source the defender may have, and which are left when a sample is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from excise.data import sample_positions
from excise.experiments.plant import pool_of
from excise.seeding import Rng
from excise.types import LabelledImages

__all__ = ["left_over", "pool_of_source"]


def pool_of_source(
    source: str, images: LabelledImages, card: Mapping[str, Any]
) -> tuple[LabelledImages, str]:
    """Return the images the defender draws from, and in words where they come from.

    A victim's card says which training images it got; the defender draws from the others.
    """
    made = card.get("made") or {}
    from_ = made.get("data") or {}
    if from_.get("source") != source:
        return images, f"{source}: all its training images"
    pool = pool_of(images, made["seed"], from_["victim_images"]).pool
    return pool, f"{source}: training images the victim never saw"


def left_over(
    images: LabelledImages,
    spc: int | None,
    rng: Rng,
    *,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    needs_validation: bool = False,
) -> LabelledImages | None:
    """Return the images that a sample drawn in this way leaves; None if it takes them all."""
    left = torch.ones(len(images), dtype=torch.bool)
    for used in sample_positions(
        images,
        spc=spc,
        rng=rng,
        validation_ratio=validation_ratio,
        paper_split=paper_split,
        needs_validation=needs_validation,
    ):
        left[used] = False
    return images.subset(left) if left.any() else None
