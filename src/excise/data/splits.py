"""How images are split, once: the victim's and the defender's, training and validation.

Every draw is without replacement and by class; equal seeds give equal positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from excise.data.listing import Undecoded
from excise.errors import DataError
from excise.seeding import Rng
from excise.types import DefenderData, Labelled, LabelledImages

__all__ = [
    "DefenderSplit",
    "PoolSplit",
    "can_hold_back",
    "defender_data",
    "evenly",
    "sample_positions",
    "spc_counts",
    "split_defender",
    "split_off",
    "split_pool",
]

Positions = Int64[Tensor, "n"]
_SHOWN = 5


T = TypeVar("T", bound=Labelled)


@dataclass(frozen=True, eq=False)
class PoolSplit(Generic[T]):
    """Training images shared out between a victim and the pool a defender draws from.

    Args:
        victim: images the victim trains on.
        pool: images the victim never sees.
        victim_index: their positions in the whole, ascending.
        pool_index: the other positions, ascending.
    """

    victim: T
    pool: T
    victim_index: Positions
    pool_index: Positions


@dataclass(frozen=True, eq=False)
class DefenderSplit(Generic[T]):
    """The defender's clean images, and what is left to measure on.

    Args:
        data: the defender's.
        left: the other images, as they were given; None where the defender has them all.
    """

    data: DefenderData
    left: T | None


def split_pool(train: T, victim_images: int | float, rng: Rng) -> PoolSplit[T]:
    """Share training images out between the victim and the defender's pool.

    Args:
        train: all training images of a data set.
        victim_images: how many the victim gets; a float is a fraction of all.
        rng: decides which; the draw is named ``"pool"``.

    Raises:
        DataError: nothing would be left for one of the two.
    """
    pool_index, victim_index = _split(train, victim_images, rng, "pool")
    return PoolSplit(train.subset(victim_index), train.subset(pool_index), victim_index, pool_index)


def split_off(
    images: T, amount: int | float, rng: Rng, name: str = "split"
) -> tuple[T, T, Positions]:
    """Take some images off, each class in proportion.

    Args:
        images: the whole.
        amount: how many to take; a float is a fraction in (0, 1).
        rng: decides which.
        name: the draw's name: another name, an independent draw.

    Returns:
        The rest, the taken images, and the positions of the taken ones in the whole. Both parts
        keep the order of the whole.

    Raises:
        DataError: an amount that takes nothing or everything.
    """
    rest, taken = _split(images, amount, rng, name)
    return images.subset(rest), images.subset(taken), taken


def spc_counts(
    spc: int,
    *,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    needs_validation: bool = True,
) -> tuple[int, int]:
    """Return how many images of each class are for training and how many for validation.

    ``v = max(1, floor(spc·r + 1e-9))`` for validation and ``spc − v`` for training: 2 → (1, 1),
    10 → (9, 1), 100 → (90, 10). The paper counts otherwise where ``spc·r < 1``: it takes one more
    image for validation, so 1 → (1, 1), 2 → (2, 1), 9 → (9, 1), 10 → (9, 1).

    Args:
        spc: samples per class, validation included.
        validation_ratio: the share r of validation images, in (0, 1).
        paper_split: count as the paper does.
        needs_validation: False: all are for training.

    Raises:
        DataError: a number out of range, or too few images for both parts.
    """
    _check_ratio(validation_ratio)
    if isinstance(spc, bool) or not isinstance(spc, int) or spc < 1:
        raise DataError(
            "at least 1 sample per class", got=f"spc={spc!r}", remedy="Use 2 to 100, or None."
        )
    if not needs_validation:
        return spc, 0
    # Without 1e-9, 0.1 · 30 would be 2.9999… in some products and give one image less.
    share = math.floor(spc * validation_ratio + 1e-9)
    if share == 0 and paper_split:
        return spc, 1
    validation = max(1, share)
    if validation >= spc:
        raise DataError(
            "at least 2 samples per class, for a method that trains and validates",
            got=f"spc={spc} with validation_ratio={validation_ratio:g}",
            remedy="Use spc=2 or more, or paper_split=True.",
        )
    return spc - validation, validation


def can_hold_back(images: Labelled, spc: int | None, *, paper_split: bool = False) -> bool:
    """Return whether each class has an image to decide by beside one to train on.

    Args:
        images: where the sample is drawn from.
        spc: samples per class; None: all.
        paper_split: see :func:`spc_counts`.
    """
    return (min(images.counts()) if spc is None else spc + paper_split) >= 2


def sample_positions(
    images: Labelled,
    *,
    spc: int | None,
    rng: Rng,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    needs_validation: bool = True,
) -> tuple[Positions, Positions]:
    """Return the positions of the training and of the validation images of a sample.

    Positions ascend, and the two share none. With the same ``rng``, a smaller ``spc`` draws a
    subset of what a larger one draws. See :func:`split_defender` for the arguments and errors.
    """
    counts = torch.tensor(images.counts())
    if spc is None:
        _check_ratio(validation_ratio)
        total = counts
        least = 2 if needs_validation else 1
        shares = (counts.double() * validation_ratio + 1e-9).floor().long().clamp(min=1)
        validation = shares if needs_validation else torch.zeros_like(counts)
    else:
        train, held = spc_counts(
            spc,
            validation_ratio=validation_ratio,
            paper_split=paper_split,
            needs_validation=needs_validation,
        )
        least = train + held
        total = torch.full_like(counts, least)
        validation = torch.full_like(counts, held)
    _check_enough(images, least)
    order, rank = _ranked(images.labels.cpu(), rng, "sample")
    label = images.labels.cpu()[order]
    # The first drawn of each class are validation images, as in the paper's code.
    is_validation = rank < validation[label]
    is_train = ~is_validation & (rank < total[label])
    return order[is_train].sort().values, order[is_validation].sort().values


def split_defender(
    images: T,
    *,
    spc: int | None,
    rng: Rng,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    pool: str = "images the victim never saw",
    needs_validation: bool = True,
) -> DefenderSplit[T]:
    """Draw the defender's clean images, the same number of every class; return the others too.

    Sampling is without replacement, by true label, over all classes.

    Args:
        images: where to draw from; never test images. Of what :func:`excise.data.list_images`
            returns only those that are drawn are decoded.
        spc: samples per class, validation included. None: all the given images, each class
            split by ``validation_ratio`` (``paper_split`` then changes nothing).
        rng: decides which; the draw is named ``"sample"``.
        validation_ratio: share of validation images, in (0, 1).
        paper_split: take one image more per class where ``spc · validation_ratio < 1``, as the
            paper does; see :func:`spc_counts`.
        pool: where ``images`` come from, in words; it stands in the record.
        needs_validation: False for a method without validation: every image is for training.

    Raises:
        DataError: a class with too few images (exactly enough is fine), or numbers out of range.
    """
    _check_labelled(images)
    train, validation = sample_positions(
        images,
        spc=spc,
        rng=rng,
        validation_ratio=validation_ratio,
        paper_split=paper_split,
        needs_validation=needs_validation,
    )
    held = _decoded(images.subset(validation)) if needs_validation else None
    left = torch.ones(len(images.labels), dtype=torch.bool)
    left[train] = left[validation] = False
    return DefenderSplit(
        DefenderData(_decoded(images.subset(train)), held, pool),
        images.subset(left) if left.any() else None,
    )


def defender_data(
    images: LabelledImages | Undecoded,
    *,
    spc: int | None,
    rng: Rng,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    pool: str = "images the victim never saw",
    needs_validation: bool = True,
) -> DefenderData:
    """Draw the defender's clean images alone: see :func:`split_defender`."""
    return split_defender(
        images,
        spc=spc,
        rng=rng,
        validation_ratio=validation_ratio,
        paper_split=paper_split,
        pool=pool,
        needs_validation=needs_validation,
    ).data


def evenly(images: T, most: int | None) -> T:
    """Return at most so many images, evenly chosen in their order; None: all."""
    total = len(images.labels)
    if most is None or most >= total:
        return images
    return images.subset(torch.linspace(0, total - 1, most).round().long())


def _decoded(images: Labelled) -> LabelledImages:
    """Return images in memory; such as are there already, as they are."""
    if isinstance(images, Undecoded):
        return images.load()
    assert isinstance(images, LabelledImages)
    return images


def _split(
    images: Labelled, amount: int | float, rng: Rng, name: str
) -> tuple[Positions, Positions]:
    """Return the positions that stay and those that are taken, each ascending."""
    total = len(images.labels)
    count = -1  # of an amount out of range, NaN included
    if not isinstance(amount, float):
        count = amount
    elif 0 < amount < 1:
        count = round(amount * total)
    if not 0 < count < total:
        raise DataError(
            f"a number of images from 1 to {total - 1}, or a fraction in (0, 1)",
            got=repr(amount),
            remedy="Leave at least one image on either side.",
        )
    labels = images.labels.cpu()
    order, rank = _ranked(labels, rng, name)
    taken = rank < _shares(torch.tensor(images.counts()), count)[labels[order]]
    return order[~taken].sort().values, order[taken].sort().values


def _shares(counts: Tensor, wanted: int) -> Tensor:
    """Share ``wanted`` out in proportion to ``counts``, largest remainders first."""
    whole = counts * wanted
    shares, remainder = whole // counts.sum(), whole % counts.sum()
    extra = torch.argsort(remainder, descending=True, stable=True)[: wanted - int(shares.sum())]
    shares[extra] += 1
    return shares


def _ranked(labels: Tensor, rng: Rng, name: str) -> tuple[Positions, Tensor]:
    """Return all positions in random order grouped by class, and each one's rank in its class."""
    shuffled = torch.randperm(len(labels), generator=rng.torch(name))
    order = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order, rank


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise DataError(
            "validation_ratio in (0, 1)",
            got=f"{ratio!r}",
            remedy="Use 0.1; for no validation images, needs_validation=False.",
        )


def _check_labelled(images: object) -> None:
    if not isinstance(images, LabelledImages | Undecoded):
        raise DataError(
            "images with their labels, as load_images or list_images returns them",
            got=type(images).__name__,
            remedy="Give excise.load_images((images, labels)).",
        )


def _check_enough(images: Labelled, least: int) -> None:
    short = [
        (name, n) for name, n in zip(images.classes, images.counts(), strict=True) if n < least
    ]
    if short:
        listed = ", ".join(f"{n} of {name!r}" for name, n in short[:_SHOWN])
        more = f" and {len(short) - _SHOWN} more classes" if len(short) > _SHOWN else ""
        raise DataError(
            f"at least {least} image{'s' * (least != 1)} of every class",
            got=f"only {listed}{more}",
            remedy="Add images of these classes."
            if least == 1 or min(n for _, n in short) == 0
            else "Add images of these classes or lower the samples per class (SPC).",
        )
