"""Triggers put on anew in every batch: how many, under which label, and in which order."""

import math

import pytest
import torch

from excise.attacks.online import Online, turned
from excise.errors import SpecError
from excise.types import AllToAll, AllToOne, Backdoor

pytestmark = pytest.mark.fast


def brighter(images):
    return (images + 0.25).clamp(0, 1)


def same(images):
    return images


def companion(poison=0.1, misses=0.2, *, rule=None, exclude_target=False, degrees=0, miss=None):
    def darker(images, others, generator):
        return images - 0.25

    backdoor = Backdoor(brighter, rule or AllToOne(2))
    return Online(backdoor, poison, misses, miss or darker, exclude_target, degrees)


def batch(n, labels=None):
    images = torch.full((n, 1, 4, 4), 128, dtype=torch.uint8)
    return images, torch.arange(n) % 5 if labels is None else labels


def run(online, images, labels, seen=0, augment=same, seed=0):
    return online.batch(
        images, labels, seen=seen, augment=augment, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("poison", "misses"), [(0.1, 0.2), (0.01, 0.02), (0.033, 0.3), (0.4, 0.4)])
@pytest.mark.parametrize("size", [7, 32, 128])
def test_an_epoch_has_exactly_as_many_as_asked(poison, misses, size):
    online, total, seen = companion(poison, misses), 500, 0
    triggered = missed = 0
    while seen < total:
        images, labels = batch(min(size, total - seen))
        mixed, given, extra = run(online, images, labels, seen)
        bright, dark = (mixed > 0.6).all((1, 2, 3)), (mixed < 0.4).all((1, 2, 3))
        assert extra is None
        assert (given[bright] == 2).all()
        assert torch.equal(given[~bright], labels[~bright])
        triggered, missed = triggered + int(bright.sum()), missed + int(dark.sum())
        seen += len(images)
    assert triggered == round(poison * total)
    assert missed == round(misses * total)


def test_nothing_given_is_written_to():
    images, labels = batch(20)
    for given in (images, images / 255):
        before, labels_before = given.clone(), labels.clone()
        run(companion(0.3, 0.3, degrees=30), given, labels)
        assert torch.equal(given, before)
        assert torch.equal(labels, labels_before)


def test_floats_are_triggered_like_the_8_bits_they_stand_for():
    images, labels = batch(20)
    one, _, _ = run(companion(), images, labels)
    other, _, _ = run(companion(), images / 255, labels)
    assert torch.equal(one, other)


def test_triggered_images_hold_what_a_picture_file_carries():
    mixed, _, _ = run(companion(0.5, 0.5), *batch(10))
    assert (mixed * 255).unique().tolist() == pytest.approx([64, 192])


def test_the_trigger_comes_before_the_augmentation():
    """Once for every image, the triggered ones included."""
    calls = []

    def augment(images):
        calls.append(images.clone())
        return images * 0

    mixed, _, _ = run(companion(0.5, 0.5), *batch(10), augment=augment)
    assert len(calls) == 1
    assert len(calls[0]) == 10
    assert (calls[0] > 0.6).all((1, 2, 3)).sum() == 5
    assert mixed.max() == 0


def test_the_target_class_can_be_left_out():
    labels = torch.tensor([2, 2, 2, 0, 1, 3, 2, 2, 0, 4])
    mixed, given, _ = run(companion(0.4, 0.2, exclude_target=True), *batch(10, labels))
    assert (mixed > 0.6).all((1, 2, 3)).nonzero().flatten().tolist() == [3, 4, 5, 8]
    assert given.tolist() == [2, 2, 2, 2, 2, 2, 2, 2, 2, 4]
    # Near misses are of all classes; those that carry the trigger are passed over.
    assert (mixed < 0.4).all((1, 2, 3)).nonzero().flatten().tolist() == [0, 1]


def test_a_batch_without_enough_others_gets_fewer():
    labels = torch.tensor([2, 2, 2, 0])
    mixed, _, _ = run(companion(0.5, 0, exclude_target=True), *batch(4, labels))
    assert (mixed > 0.6).all((1, 2, 3)).tolist() == [False, False, False, True]


def test_all_to_all():
    images, labels = batch(10)
    _, given, _ = run(companion(0.4, 0.4, rule=AllToAll(5)), images, labels)
    assert given.tolist() == [1, 2, 3, 4, 4, 0, 1, 2, 3, 4]


def test_a_near_miss_is_given_another_image():
    """Never the image itself; which one is drawn."""
    images = torch.arange(8, dtype=torch.uint8).mul(20).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    drawn = set()

    def miss(given, others, generator):
        assert len(given) == len(others) == 8
        assert not (given == others).all((1, 2, 3)).any()
        drawn.add(tuple(others[:, 0, 0, 0].tolist()))
        return given

    for seed in range(5):
        run(companion(0, 1, miss=miss), images, torch.zeros(8).long(), seed=seed)
    assert len(drawn) > 1


def test_more_than_all_images_are_refused():
    with pytest.raises(
        SpecError,
        match=r"expected triggered images and near misses that are together at most all images, "
        r"got 0\.4 and 0\.8 of them\. Choose a smaller poison_ratio",
    ):
        companion(0.4, 0.8)
    companion(0.1 + 0.2, 0.7)  # one, but for the last bit


def test_it_has_nothing_to_resume():
    online = companion()
    assert online.state_dict() == {}
    online.load_state_dict({})
    online.step(0.5)


def test_half_of_the_images_are_turned():
    images = torch.rand(400, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    result = turned(images, 10, torch.Generator().manual_seed(1))
    assert torch.equal(images, before)
    changed = (result != images).any((1, 2, 3))
    assert 160 < int(changed.sum()) < 240
    assert torch.equal(turned(images, 0, torch.Generator()), images)
    assert turned(images[:0], 10, torch.Generator()).shape == (0, 1, 6, 6)


@pytest.mark.parametrize(("h", "w"), [(41, 41), (41, 61)])
def test_they_are_turned_about_the_middle_without_being_stretched(h, w):
    """A bright dot keeps its distance in pixels; its angle is at most the one given."""
    images = torch.zeros(60, 1, h, w)
    images[:, :, h // 2 - 15 : h // 2 - 12, w // 2 - 1 : w // 2 + 2] = 1  # 14 pixels above
    result = turned(images, 25, torch.Generator().manual_seed(0))[:, 0]
    rows, columns = torch.arange(h) - h // 2, torch.arange(w) - w // 2
    mass = result.sum((1, 2))
    up = -(result.sum(2) * rows).sum(1) / mass
    right = (result.sum(1) * columns).sum(1) / mass
    torch.testing.assert_close((up**2 + right**2).sqrt(), torch.full((60,), 14.0), atol=0.2, rtol=0)
    angles = torch.atan2(right, up) * 180 / math.pi
    assert 20 < angles.abs().max() < 25.5
    assert angles.min() < -10
    assert angles.max() > 10
