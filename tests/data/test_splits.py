"""Splits: disjoint, exact, stratified, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.data import (
    defender_data,
    sample_positions,
    spc_counts,
    split_defender,
    split_off,
    split_pool,
)
from excise.data.listing import spread
from excise.errors import DataError
from excise.seeding import Rng
from excise.types import LabelledImages

pytestmark = pytest.mark.fast


def images_of(labels: list[int], classes: int | None = None) -> LabelledImages:
    """Images whose every pixel tells their position, so that a mix-up shows."""
    n = len(labels)
    pixels = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1) / max(n, 1)
    names = tuple(f"c{k}" for k in range(classes or max(labels) + 1))
    return LabelledImages(pixels.expand(n, 3, 2, 2).contiguous(), torch.tensor(labels), names)


def same(a: LabelledImages, b: LabelledImages) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


# Shuffled labels with between 4 and 30 images of each of 2 to 6 classes.
label_lists = st.lists(st.integers(4, 30), min_size=2, max_size=6).flatmap(
    lambda counts: st.permutations([k for k, n in enumerate(counts) for _ in range(n)])
)


@pytest.mark.parametrize(
    ("spc", "ours", "paper"),
    [
        (1, None, (1, 1)),
        (2, (1, 1), (2, 1)),
        (9, (8, 1), (9, 1)),
        (10, (9, 1), (9, 1)),
        (20, (18, 2), (18, 2)),
        (30, (27, 3), (27, 3)),
        (100, (90, 10), (90, 10)),
    ],
)
def test_counts_are_the_table_of_the_sources(
    spc: int, ours: tuple[int, int] | None, paper: tuple[int, int]
) -> None:
    assert spc_counts(spc, paper_split=True) == paper
    if ours is not None:
        assert spc_counts(spc) == ours
    assert spc_counts(spc, needs_validation=False) == (spc, 0)
    assert spc_counts(spc, needs_validation=False, paper_split=True) == (spc, 0)


@given(st.integers(2, 1000), st.floats(0.01, 0.9))
def test_counts_add_up_to_the_budget(spc: int, ratio: float) -> None:
    train, validation = spc_counts(spc, validation_ratio=ratio)
    assert train + validation == spc
    assert train >= 1
    assert validation == max(1, math.floor(spc * ratio + 1e-9))


def test_counts_do_not_lose_an_image_to_float_rounding() -> None:
    # 0.29 · 100 is 28.999999999999996 in floating point.
    assert spc_counts(100, validation_ratio=0.29) == (71, 29)


@settings(deadline=None, max_examples=40)
@given(label_lists, st.integers(2, 4), st.booleans(), st.booleans(), st.integers(0, 2**40))
def test_a_sample_is_exact_disjoint_and_repeatable(
    labels: list[int], spc: int, paper: bool, needs: bool, seed: int
) -> None:
    images = images_of(labels)
    spc = spc - 1 if paper and needs else spc
    kind = {"paper_split": paper, "needs_validation": needs}
    train, validation = sample_positions(images, spc=spc, rng=Rng(seed), **kind)
    want = spc_counts(spc, **kind)
    assert not set(train.tolist()) & set(validation.tolist())
    assert (
        torch.bincount(images.labels[train], minlength=images.num_classes).tolist()
        == [want[0]] * images.num_classes
    )
    assert (
        torch.bincount(images.labels[validation], minlength=images.num_classes).tolist()
        == [want[1]] * images.num_classes
    )
    again = sample_positions(images, spc=spc, rng=Rng(seed), **kind)
    assert torch.equal(train, again[0])
    assert torch.equal(validation, again[1])
    split = split_defender(images, spc=spc, rng=Rng(seed), pool="here", **kind)
    data = split.data
    assert data.pool == "here"
    rest = sorted({*range(len(images))} - {*train.tolist(), *validation.tolist()})
    assert (split.left is None) == (not rest)
    if split.left is not None:
        assert same(split.left, images.subset(torch.tensor(rest)))
    alone = defender_data(images, spc=spc, rng=Rng(seed), pool="here", **kind)
    assert alone.everything().fingerprint() == data.everything().fingerprint()
    assert same(data.train, images.subset(train))  # drawn through the sample, not rows 0, 1, …
    assert (data.validation is None) == (not needs)
    if data.validation is not None:
        assert same(data.validation, images.subset(validation))


@settings(deadline=None, max_examples=40)
@given(label_lists, st.integers(0, 2**40))
def test_a_larger_budget_only_adds_images(labels: list[int], seed: int) -> None:
    images = images_of(labels)
    drawn = [
        set(torch.cat(sample_positions(images, spc=spc, rng=Rng(seed))).tolist())
        for spc in (2, 3, 4)
    ]
    assert drawn[0] < drawn[1] < drawn[2]


@settings(deadline=None, max_examples=40)
@given(label_lists, st.floats(0.05, 0.7), st.booleans())
def test_no_budget_uses_every_image(labels: list[int], ratio: float, needs: bool) -> None:
    images = images_of(labels)
    train, validation = sample_positions(
        images, spc=None, rng=Rng(0), validation_ratio=ratio, needs_validation=needs
    )
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(images)))
    want = [max(1, math.floor(n * ratio + 1e-9)) if needs else 0 for n in images.counts()]
    held = torch.bincount(images.labels[validation], minlength=images.num_classes)
    assert held.tolist() == want


def test_other_seeds_draw_other_images() -> None:
    images = images_of([0, 1] * 200)
    draws = [sample_positions(images, spc=10, rng=Rng(seed))[0].tolist() for seed in range(5)]
    assert len({tuple(draw) for draw in draws}) == 5


def test_every_image_is_equally_likely_to_be_drawn() -> None:
    images = images_of([0] * 5 + [1] * 5)
    drawn = torch.zeros(10)
    for seed in range(1000):
        train, validation = sample_positions(images, spc=2, rng=Rng(seed))
        drawn[train] += 1
        drawn[validation] += 1
    # Each is drawn with p = .4; five standard deviations of Binomial(1000, .4) are 78.
    assert ((drawn - 400).abs() < 78).all()


def test_the_order_of_the_images_decides_nothing_but_which_is_which() -> None:
    labels = torch.tensor([0, 1] * 20)
    images = images_of(labels.tolist())
    data = defender_data(images, spc=4, rng=Rng(3))
    assert (
        data.train.labels.tolist()
        == images.subset(sample_positions(images, spc=4, rng=Rng(3))[0]).labels.tolist()
    )


def test_exactly_enough_images_are_enough() -> None:
    images = images_of([0, 0, 1, 1])
    data = defender_data(images, spc=2, rng=Rng(0))
    assert data.train.counts() == [1, 1]
    assert defender_data(images, spc=1, rng=Rng(0), paper_split=True).train.counts() == [1, 1]


@pytest.mark.parametrize(
    ("labels", "classes", "kind", "message"),
    [
        ([0, 0, 1], 2, {"spc": 2}, r"at least 2 images of every class, got only 1 of 'c1'"),
        ([0, 0, 1, 1], 2, {"spc": 2, "paper_split": True}, r"at least 3 .* 2 of 'c0', 2 of 'c1'"),
        ([0, 0, 2, 2], 3, {"spc": 2}, r"got only 0 of 'c1'"),
        ([0, 0, 2, 2], 3, {"spc": None}, r"got only 0 of 'c1'"),
        ([0, 0, 1], 2, {"spc": None}, r"at least 2 images of every class, got only 1 of 'c1'"),
        ([0, 2], 3, {"spc": None, "needs_validation": False}, r"1 image of every .* 0 of 'c1'"),
        ([9], 10, {"spc": 1, "needs_validation": False}, r"0 of 'c4' and 4 more classes"),
        ([0, 0], 1, {"spc": 1}, r"at least 2 samples per class.*got spc=1.*paper_split=True"),
        (
            [0, 0],
            2,
            {"spc": 1, "needs_validation": False},
            r"only 0 of 'c1'\. Add images of",
        ),
        ([0, 0], 1, {"spc": 0}, r"at least 1 sample per class, got spc=0"),
        ([0, 0], 1, {"spc": True}, r"at least 1 sample per class, got spc=True"),
        ([0, 0], 1, {"spc": 2.0}, r"at least 1 sample per class, got spc=2.0"),
        ([0, 0], 1, {"spc": 2, "validation_ratio": 0}, r"validation_ratio in \(0, 1\), got 0"),
        ([0, 0], 1, {"spc": None, "validation_ratio": 1}, r"validation_ratio in \(0, 1\), got 1"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    labels: list[int], classes: int, kind: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        defender_data(images_of(labels, classes), rng=Rng(0), **kind)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(label_lists, st.data(), st.integers(0, 2**40))
def test_a_pool_and_its_victim_share_out_everything(
    labels: list[int], data: st.DataObject, seed: int
) -> None:
    images = images_of(labels)
    count = data.draw(st.integers(1, len(images) - 1))
    split = split_pool(images, count, Rng(seed))
    assert len(split.victim) == count
    both = [*split.victim_index.tolist(), *split.pool_index.tolist()]
    assert sorted(both) == list(range(len(images)))
    assert same(split.victim, images.subset(split.victim_index))
    assert same(split.pool, images.subset(split.pool_index))
    for total, got in zip(images.counts(), split.victim.counts(), strict=True):
        assert abs(got - total * count / len(images)) < 1  # each class in proportion
    again = split_pool(images, count, Rng(seed))
    assert torch.equal(split.victim_index, again.victim_index)


def test_a_split_takes_a_fraction_or_a_number() -> None:
    images = images_of([0, 1, 2, 3] * 10)
    rest, taken, index = split_off(images, 0.25, Rng(1))
    assert taken.counts() == [3, 3, 2, 2]  # 2.5 of each: whole images, first classes first
    assert len(rest) == 30
    assert same(taken, images.subset(index))
    assert torch.equal(index, index.sort().values)
    assert len(split_off(images, 10, Rng(1))[1]) == 10
    other = split_off(images, 10, Rng(1), "another use")[2]
    assert not torch.equal(other, index)


@pytest.mark.parametrize("amount", [0, 8, 9, -1, 0.0, 1.0, 1.5, -0.5, 0.01, float("nan")])
def test_a_split_leaves_something_on_either_side(amount: float) -> None:
    with pytest.raises(DataError, match=r"images from 1 to 7, or a fraction in \(0, 1\), got"):
        split_off(images_of([0, 1] * 4), amount, Rng(0))


@settings(deadline=None, max_examples=40)
@given(label_lists, st.integers(1, 40))
def test_a_limit_is_spread_over_the_classes(labels: list[int], limit: int) -> None:
    tensor = torch.tensor(labels)
    index = spread(tensor, limit)
    assert len(index) == min(limit, len(labels))
    assert torch.equal(index, index.sort().values)
    got = torch.bincount(tensor[index], minlength=int(tensor.max()) + 1)
    full = torch.bincount(tensor)
    for k in range(len(got)):  # a class falls behind another only where it is used up
        assert got[k] == full[k] or got[k] >= got.max() - 1
        first = (tensor == k).nonzero().flatten()[: int(got[k])]
        assert torch.equal(index[tensor[index] == k], first)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(DataError, match=r"a limit of at least 1 image, got 0"):
        spread(torch.tensor([0]), 0)
