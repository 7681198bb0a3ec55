"""What must hold of poisoning for all data and all ratios: counts, labels, untouched images."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from excise.attacks import AdapBlend, AdapPatch, BadNets, Blended, CleanLabel
from excise.attacks.poisoning import Drawn, quota
from excise.errors import SpecError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Blend
from excise.types import AllToAll, AllToOne, LabelledImages, as_floats, round_to_8_bits

pytestmark = pytest.mark.fast
# Time limits would fail on a busy machine; the same examples everywhere.
STEADY = settings(deadline=None, derandomize=True, max_examples=60)

ratios = st.floats(0.001, 1.0, allow_subnormal=False)
seeds = st.integers(0, 2**63)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OfTheTarget(Drawn, CleanLabel):
    """A clean-label attack; the simplest there is."""

    def trigger(self, shape, rng):
        return Blend(torch.ones(shape), 0.5)


@st.composite
def data_sets(draw, most=120):
    """Images 8 × 8 with labels in any mixture, classes without an image included."""
    n = draw(st.integers(1, most))
    classes = draw(st.integers(2, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10)))
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(draw(st.integers(1, classes)), (n,), generator=generator)
    if draw(st.booleans()):
        labels = labels.sort().values
    data = LabelledImages(pixels, labels, tuple("abcdefg")[:classes])
    if draw(st.booleans()):
        data = LabelledImages(data.floats(), labels, data.classes)
    return data


def index_or_none(attack, data, rule, seed):
    """Return the poisoned positions, or None where the ratio is refused."""
    try:
        return attack.poison_index(data, rule, Rng(seed))
    except SpecError as error:
        assert "Choose another poison_ratio" in str(error)  # noqa: PT017
        return None


def assert_sorted_positions(index, n):
    assert index.dtype == torch.int64
    assert index.tolist() == sorted(set(index.tolist()))
    assert not len(index) or (index[0] >= 0 and index[-1] < n)


@given(ratio=st.floats(0.0, 1.0), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=60))
@example(ratio=0.1, sizes=[128] * 390 + [80])
@example(ratio=0.5, sizes=[1] * 7)
@STEADY
def test_the_quotas_of_an_epoch_add_up(ratio, sizes):
    """However it is cut into batches, an epoch triggers ``round(ratio · N)`` images."""
    seen, total = 0, 0
    for size in sizes:
        count = quota(ratio, seen, size)
        assert 0 <= count <= size
        # No batch strays from its share by a whole image.
        assert abs(count - ratio * size) <= 1 + 1e-6
        seen, total = seen + size, total + count
    assert total == round(ratio * seen)


@given(data=data_sets(), ratio=ratios, seed=seeds, exclude=st.booleans(), to_all=st.booleans())
@STEADY
def test_dirty_label_draws_exactly_its_ratio(data, ratio, seed, exclude, to_all):
    attack = BadNets(
        poison_ratio=ratio, exclude_target=exclude, rule="all-to-all" if to_all else "all-to-one"
    )
    rule = attack.target_rule(data.num_classes, Rng(seed))
    assert rule == AllToAll(data.num_classes) if to_all else isinstance(rule, AllToOne)
    index = index_or_none(attack, data, rule, seed)
    count = round(ratio * len(data))
    open_to_poison = rule.counted(data.labels) if exclude else torch.ones(len(data)).bool()
    assert (index is None) == (count == 0 or count > open_to_poison.sum())
    if index is not None:
        assert len(index) == count
        assert_sorted_positions(index, len(data))
        assert open_to_poison[index].all()
        assert torch.equal(index, attack.poison_index(data, rule, Rng(seed)))


@given(data=data_sets(), ratio=ratios, seed=seeds)
@STEADY
def test_clean_label_draws_exactly_its_ratio_of_the_target_class(data, ratio, seed):
    attack = OfTheTarget(poison_ratio=ratio)
    rule = attack.target_rule(data.num_classes, Rng(seed))
    index = index_or_none(attack, data, rule, seed)
    of_target = (data.labels == rule.target).nonzero().squeeze(1)
    count = round(ratio * len(of_target))
    assert (index is None) == (count == 0)
    if index is not None:
        assert len(index) == count
        assert_sorted_positions(index, len(data))
        assert set(index.tolist()) <= set(of_target.tolist())
        assert torch.equal(index, attack.poison_index(data, rule, Rng(seed)))


@given(
    data=data_sets(), ratio=ratios, seed=seeds, exclude=st.booleans(),
    kind=st.sampled_from([BadNets, Blended, OfTheTarget, AdapBlend, AdapPatch]),
    cover=st.floats(0.0, 0.9), to_all=st.booleans(),
)  # fmt: skip
@settings(STEADY, max_examples=100)
def test_poison_touches_what_it_says_and_nothing_else(
    data, ratio, seed, exclude, kind, cover, to_all
):
    covered = kind in (AdapBlend, AdapPatch)
    fields = {"poison_ratio": ratio} | ({"cover_rate": cover} if covered else {})
    if kind is not OfTheTarget:
        fields |= {"exclude_target": exclude, "rule": "all-to-all" if to_all else "all-to-one"}
    attack = kind(**fields)
    backdoor = attack.backdoor(data.shape, data.num_classes, Rng(seed))
    before = data.fingerprint()
    try:
        result = attack.poison(data, backdoor, Rng(seed))
    except SpecError:
        assume(False)
    assert data.fingerprint() == before
    assert result.data.images.dtype == torch.uint8
    assert result.data.classes == data.classes

    index = result.index
    assert torch.equal(index, attack.poison_index(data, backdoor.rule, Rng(seed)))
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[index] = False
    if covered:
        assert len(result.cover_index) == round(cover * len(data))
        assert_sorted_positions(result.cover_index, len(data))
        assert rest[result.cover_index].all(), "payload and cover share an image"
        assert backdoor.rule.counted(data.labels[result.cover_index]).all()
        rest[result.cover_index] = False
    else:
        assert result.cover_index is None
    images = data.images if data.images.dtype == torch.uint8 else (data.images * 255).round().byte()
    assert torch.equal(result.data.images[rest], images[rest])

    expected = data.labels.clone()
    expected[index] = backdoor.rule.wanted(data.labels[index])
    assert torch.equal(result.data.labels, expected)
    if kind is OfTheTarget:
        assert torch.equal(result.data.labels, data.labels)
    if not covered:
        triggered = round_to_8_bits(backdoor.trigger(as_floats(images[index])))
        assert torch.equal(as_floats(result.data.images[index]), triggered)

    again = attack.poison(data, attack.backdoor(data.shape, data.num_classes, Rng(seed)), Rng(seed))
    assert torch.equal(again.index, index)
    assert again.data.fingerprint() == result.data.fingerprint()


@given(seed=st.integers(0, 1000))
@settings(STEADY, max_examples=20)
def test_another_seed_draws_other_images(seed):
    data = LabelledImages(
        torch.zeros(400, 1, 8, 8, dtype=torch.uint8), torch.arange(400) % 4, tuple("abcd")
    )
    for attack in (BadNets(poison_ratio=0.5), OfTheTarget(poison_ratio=0.5)):
        one, other = (attack.poison_index(data, AllToOne(1), Rng(s)) for s in (seed, seed + 1))
        assert not torch.equal(one, other)


@given(n=st.integers(1, 200), h=st.integers(1, 40), w=st.integers(1, 40), seed=seeds,
       grid=st.integers(1, 6), rate=st.floats(0.0, 0.999))  # fmt: skip
@STEADY
def test_every_image_shows_the_same_number_of_pieces(n, h, w, seed, grid, rate):
    assume(min(h, w) >= grid)
    shown = AdapBlend(grid=grid, mask_rate=rate).pieces(n, h, w, Rng(seed))
    assert shown.shape == (n, h, w)
    # One pixel of every piece: the first whose index falls into it.
    rows, columns = (torch.arange(size) * grid // size for size in (h, w))
    first = [
        torch.tensor([int((axis == k).nonzero()[0]) for k in range(grid)])
        for axis in (rows, columns)
    ]
    pieces = shown[:, first[0]][:, :, first[1]]
    assert set(pieces.flatten(1).sum(1).tolist()) == {max(1, grid**2 - round(rate * grid**2))}
    assert torch.equal(pieces[:, rows][:, :, columns], shown)
