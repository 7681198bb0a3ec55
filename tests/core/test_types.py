"""What images and labels must be, and the words made of them."""

import pickle

import pytest
import torch

from excise.errors import DataError
from excise.types import (
    AllToAll,
    AllToOne,
    Backdoor,
    DefenderData,
    Edit,
    Evidence,
    Inverter,
    LabelledImages,
    RecoveredTrigger,
    Repair,
    TargetRule,
    Trigger,
    as_floats,
    ignore_round,
    round_to_8_bits,
)

pytestmark = pytest.mark.fast

CLASSES = ("a", "b", "c")


def made(n=4, *, dtype=torch.uint8, **changes):
    images = torch.arange(n * 12).reshape(n, 1, 3, 4)
    images = images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype)
    given = {"images": images, "labels": torch.arange(n) % 3, "classes": CLASSES} | changes
    return LabelledImages(**given)


LABELS = torch.tensor([0, 1, 2, 0])
REFUSED = {
    "three dimensions": (
        {"images": torch.zeros(4, 3, 3)},
        r"expected images of shape \(n, c, h, w\) and n labels, got images \(4, 3, 3\) and "
        r"labels \(4,\)\. Stack the images into one tensor",
    ),
    "fewer labels": (
        {"labels": LABELS[:3]},
        r"got images \(4, 1, 3, 4\) and labels \(3,\)",
    ),
    "a column of labels": (
        {"labels": LABELS[:, None]},
        r"got images \(4, 1, 3, 4\) and labels \(4, 1\)",
    ),
    "no images": (
        {"images": torch.zeros(0, 1, 3, 4), "labels": LABELS[:0]},
        r"expected at least one image, got none\. Give some clean, labeled images",
    ),
    "negative": (
        {"images": torch.full((4, 1, 3, 4), -0.1)},
        r"expected float images in \[0, 1\] or uint8 images, got torch.float32 values in "
        r"\[-0\.1, -0\.1\]\. Undo any normalization and scale to \[0, 1\]",
    ),
    "0 to 255 as floats": ({"images": torch.full((4, 1, 3, 4), 255.0)}, r"values in \[255, 255\]"),
    "NaN": ({"images": torch.full((4, 1, 3, 4), float("nan"))}, r"values in \[nan, nan\]"),
    "one NaN": ({"images": torch.zeros(4, 1, 3, 4).index_fill(3, torch.tensor(1), float("nan"))},
                r"values in \[nan, nan\]"),
    "infinity": ({"images": torch.full((4, 1, 3, 4), float("inf"))}, r"values in \[inf, inf\]"),
    "int64 images": ({"images": torch.zeros(4, 1, 3, 4).long()}, r"got torch.int64 values"),
    "uint16 images": (
        {"images": torch.zeros(4, 1, 3, 4, dtype=torch.uint16)},
        r"expected float images in \[0, 1\] or uint8 images, got torch.uint16 values",
    ),
    "floats of 8 bits": (
        {"images": torch.zeros(4, 1, 3, 4).to(torch.float8_e5m2)},
        r"got torch.float8_e5m2 values",
    ),
    "complex images": ({"images": torch.zeros(4, 1, 3, 4) + 0j}, r"got torch.complex64 values"),
    "int32 labels": (
        {"labels": LABELS.int()},
        r"expected labels of type int64, got torch.int32\. Convert them with labels.long\(\)",
    ),
    "float labels": ({"labels": LABELS.float()}, r"expected labels of type int64"),
    "a label too high": (
        {"labels": LABELS + 1},
        r"expected labels from 0 to 2 \(3 classes\), got labels from 1 to 3\. Check the class map",
    ),
    "a negative label": ({"labels": LABELS - 1}, r"got labels from -1 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_explained(case):
    changes, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        made(**changes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_what_fits(dtype):
    data = made(dtype=dtype)
    assert len(data) == 4
    assert data.num_classes == 3
    assert data.shape == (1, 3, 4)
    assert data.device == torch.device("cpu")
    assert data.counts() == [2, 1, 1]
    assert not data.mirror


def test_what_made_the_images_is_let_go():
    images = torch.full((4, 1, 3, 4), 0.5, requires_grad=True)
    data = made(images=images * 1)
    assert not data.images.requires_grad
    assert images.requires_grad
    data.fingerprint()


def test_a_class_without_images_still_counts():
    assert made(2, classes=(*CLASSES, "d")).counts() == [1, 1, 0, 0]


def test_8_bits_become_fractions_and_floats_stay():
    assert torch.equal(made().floats(), torch.arange(48).reshape(4, 1, 3, 4) / 255)
    floats = torch.rand(2, 1, 3, 3)
    assert as_floats(floats) is floats
    stored = torch.tensor([0, 255], dtype=torch.uint8)
    assert as_floats(stored).tolist() == [0.0, 1.0]
    assert stored.tolist() == [0, 255]


def test_a_subset_by_numbers_or_by_mask():
    data = made(mirror=True)
    some = data.subset(torch.tensor([3, 1]))
    assert some.labels.tolist() == [0, 1]
    assert torch.equal(some.images, data.images[[3, 1]])
    assert some.mirror
    assert some.classes == CLASSES
    assert data.subset(data.labels == 0).labels.tolist() == [0, 0]
    with pytest.raises(DataError, match="at least one image"):
        data.subset(torch.zeros(4, dtype=torch.bool))


def test_batches_are_in_order_and_floats():
    data = made(5)
    batches = list(data.batches(2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), data.floats())
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_moving_to_a_device_keeps_everything_else():
    moved = made(mirror=True).to("cpu")
    assert moved.mirror
    assert moved.fingerprint() == made().fingerprint()


def test_a_fingerprint_sees_pixels_labels_names_shape_and_order():
    data = made()
    other = data.images.clone()
    other[3, 0, 2, 3] += 1
    prints = [
        data.fingerprint(),
        made(images=other).fingerprint(),
        made(labels=torch.tensor([0, 1, 2, 1])).fingerprint(),
        made(classes=("a", "b", "d")).fingerprint(),
        made(images=data.images.reshape(4, 1, 4, 3)).fingerprint(),
        data.subset(torch.tensor([1, 0, 2, 3])).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert made().fingerprint() == data.fingerprint()
    last = data.images.contiguous(memory_format=torch.channels_last)
    assert made(images=last).fingerprint() == data.fingerprint()


def test_rounding_to_8_bits():
    images = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 0.999, 1.0, 1.7])
    given = images.clone()
    steps = round_to_8_bits(images) * 255
    assert steps.round().tolist() == [0, 0, 0, 1, 100, 255, 255, 255]
    assert torch.equal(images, given)
    # What is rounded already stays, for each of the 256 values.
    every = torch.arange(256) / 255
    assert torch.equal(round_to_8_bits(every), every)
    assert torch.equal(round_to_8_bits(every.double()), every.double().mul(255).round() / 255)


def test_defender_data():
    data = DefenderData(made(), made(2), "a pool")
    assert data.num_classes == 3
    assert data.held_out("X") is data.validation
    assert data.everything().labels.tolist() == [0, 1, 2, 0, 0, 1]
    assert data.to("cpu").pool == "a pool"
    without = DefenderData(made(), None, "a pool")
    assert without.everything() is without.train
    assert without.to("cpu").validation is None
    with pytest.raises(
        DataError,
        match=r"expected validation images for Neural X, got training images only\. Give at least "
        r"2 images per class, or split them with excise\.data\.defender_data\.",
    ):
        without.held_out("Neural X")


def test_all_to_one():
    labels = torch.tensor([0, 1, 2, 1])
    rule = AllToOne(1)
    assert rule.wanted(labels).tolist() == [1, 1, 1, 1]
    assert rule.counted(labels).tolist() == [True, False, True, False]
    assert isinstance(rule, TargetRule)
    assert rule == AllToOne(1) != AllToOne(2)


def test_all_to_all():
    labels = torch.tensor([0, 1, 2, 1])
    rule = AllToAll(3)
    assert rule.wanted(labels).tolist() == [1, 2, 0, 2]
    assert rule.counted(labels).all()
    assert rule.wanted(labels).dtype == torch.int64
    assert isinstance(rule, TargetRule)


def test_a_recovered_trigger_is_a_trigger():
    found = RecoveredTrigger(lambda images: 1 - images, target=2, evidence=Evidence(flip_rate=0.9))
    assert isinstance(found, Trigger)
    assert found(torch.zeros(1, 1, 2, 2)).min() == 1
    assert not found.evidence.told
    assert RecoveredTrigger(abs).evidence == Evidence()
    assert not isinstance(found, Inverter)


def test_what_is_recorded_is_frozen_and_crosses_processes():
    edit = Edit("silence", "conv1", 3, 1)
    assert pickle.loads(pickle.dumps(edit)) == edit
    with pytest.raises(AttributeError):
        edit.index = 4
    repair = Repair(torch.nn.Identity(), (edit,), ({"stage": "prune"},))
    assert (repair.assumed, repair.notes, dict(repair.seconds)) == ((), (), {})
    backdoor = Backdoor(abs, AllToOne(0))
    assert backdoor.train_trigger is None
    assert ignore_round({"stage": "x"}) is None
