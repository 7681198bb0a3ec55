"""A network and the images its defender may have, and which are left when a sample is drawn.

Images are listed, drawn, and only then decoded: ten a class of a million are ten a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from excise.commands.options import Given
from excise.console import Story
from excise.data import Undecoded, evenly, sample_positions
from excise.experiments.plant import pool_of
from excise.models import Network, check_model, read_card
from excise.seeding import Rng
from excise.types import LabelledImages

__all__ = ["left_over", "opened"]


def opened(
    given: Given, model: str, source: str, device: torch.device, story: Story
) -> tuple[Network, Mapping[str, Any], Undecoded, str]:
    """Return a network, its card, the images the defender draws from, and where those come from.

    Raises:
        DataError: images that do not fit the network.
        ModelError: a network that cannot be read, or that does not fit the images.
    """
    network = given.network(model).to(device)
    card = read_card(Path(model)) if Path(model).is_dir() else {}
    images, order = given.listed(network, source)
    story.stage(order)
    if not Path(model).is_dir() and given.mean is None and given.std is None:
        story.stage("no --mean and --std: the network is given images in [0, 1] as they are")
    check_model(network, network.input_shape, len(images.classes))
    return network, card, *_pool(source, images, card)


def _pool(source: str, images: Undecoded, card: Mapping[str, Any]) -> tuple[Undecoded, str]:
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
    images: Undecoded,
    spc: int | None,
    rng: Rng,
    *,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    needs_validation: bool = False,
    most: int | None = None,
) -> LabelledImages | None:
    """Return the images that a sample drawn in this way leaves; None if it takes them all.

    Args:
        images: of which the sample is drawn.
        spc: as the sample's, like the rest.
        rng: the same.
        validation_ratio: the same.
        paper_split: the same.
        needs_validation: the same.
        most: at most so many, evenly chosen.
    """
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
    return evenly(images.subset(left), most).load() if left.any() else None
