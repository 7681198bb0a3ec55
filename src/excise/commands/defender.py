"""A network and the images its defender may have.

Images are listed, drawn, and only then decoded: ten a class of a million are ten a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from excise.commands.options import Given
from excise.console import Story
from excise.data import Undecoded
from excise.experiments.plant import pool_of
from excise.models import Network, check_model, read_card

__all__ = ["opened"]


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
