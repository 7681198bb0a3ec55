import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.errors import DataError
from excise.evaluation import Evaluation, Outcomes, Rate, fingerprint, fingerprints, summarize

pytestmark = pytest.mark.fast

LABELS = np.array([0, 0, 1, 1, 2, 2])
CLEAN = np.array([0, 1, 1, 1, 2, 0])
TRIGGERED = np.array([-1, -1, 0, 1, 0, 1])
COUNTED = LABELS != 0
WANTED = np.zeros(6, dtype=np.int64)
CLASSES = ("cat", "dog", "eel")


def outcomes() -> Outcomes:
    return Outcomes(LABELS, CLEAN, TRIGGERED, COUNTED, WANTED, "abc")


def test_figures_by_hand():
    e = summarize(outcomes(), CLASSES, target=0)
    assert e.acc == Rate(4, 6)
    assert e.asr == Rate(2, 4)
    assert e.ra == Rate(1, 4)
    assert e.target_recall == Rate(1, 2)
    assert e.per_class_recall == (Rate(1, 2), Rate(2, 2), Rate(1, 2))
    assert e.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert e.triggered_confusion.tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert (e.n, e.num_classes) == (6, 3)


def test_what_does_not_count_is_left_out_whatever_it_says():
    said = np.where(COUNTED, TRIGGERED, 0)
    e = summarize(Outcomes(LABELS, CLEAN, said, COUNTED, WANTED), CLASSES, target=0)
    assert e.to_json() == summarize(outcomes(), CLASSES, target=0).to_json()
    assert not e.outcomes.success[:2].any()
    assert not e.outcomes.recovered[:2].any()


def test_without_a_trigger():
    e = summarize(Outcomes(LABELS, CLEAN), CLASSES)
    assert e.asr is e.ra is e.target_recall is e.triggered_confusion is e.target is None
    o = e.outcomes
    assert not o.shown.any()
    assert not o.success.any()
    assert not o.recovered.any()


def test_evaluation_round_trips_through_json():
    e = summarize(outcomes(), CLASSES, target=0)
    plain = json.loads(json.dumps(e.to_json(), allow_nan=False))
    assert plain["acc"] == e.acc.to_json()
    assert plain["n"] == 6
    assert "outcomes" not in plain
    back = Evaluation.from_json(plain)
    assert back.to_json() == plain
    assert back.outcomes is None
    clean = summarize(Outcomes(LABELS, CLEAN), CLASSES).to_json()
    assert Evaluation.from_json(clean).to_json() == clean


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.pop("acc"),
        lambda p: p.update(confusion=[[1]]),
        lambda p: p.update(acc={"count": 1}),
        lambda p: p.update(classes=3),
    ],
)
def test_damaged_evaluation_json_is_refused(damage):
    plain = summarize(outcomes(), CLASSES, target=0).to_json()
    damage(plain)
    with pytest.raises(DataError, match=r"expected an evaluation as Evaluation\.to_json writes it"):
        Evaluation.from_json(plain)


@settings(deadline=None)
@given(st.data())
def test_outcomes_pack_and_unpack(data):
    k = data.draw(st.sampled_from([2, 256, 257, 1000, 70_000]))
    n = data.draw(st.integers(1, 40))
    g = np.random.default_rng(data.draw(st.integers(0, 1000)))
    labels, clean, triggered, wanted = g.integers(0, k, (4, n))
    counted = g.random(n) < 0.7
    whole = Outcomes(labels, clean, np.where(counted, triggered, -1), counted, wanted, "f")
    for o in (whole, Outcomes(labels, clean)):
        back = Outcomes.unpack(json.loads(json.dumps(o.pack())))
        assert back.images == o.images
        for name in ("labels", "clean", "triggered", "counted", "wanted"):
            a, b = getattr(o, name), getattr(back, name)
            assert (a is None and b is None) or (np.array_equal(a, b) and a.dtype == b.dtype)


def test_packing_is_small():
    n = 3000
    labels = np.arange(n) % 10
    o = Outcomes(labels, labels, labels, np.ones(n, bool), labels)
    # Four arrays of one byte an image and one of one bit, a third more in base64.
    assert len(json.dumps(o.pack())) < 1.34 * (4 + 1 / 8) * n + 200


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.pop("clean"), "KeyError: 'clean'"),
        (lambda p: p.update(n=7), "6 numbers for 7 images"),
        (lambda p: p.update(labels="?"), "Error"),
        (lambda p: p.update(labels=None), "TypeError"),
        (lambda p: p.update(type="f8"), "unknown number type 'f8'"),
        (lambda p: p.update(triggered=""), "0 numbers for 4 images"),
        (lambda p: p.update(counted=""), "numbers for 0 images"),
        (lambda p: p.update(wanted=""), "0 numbers for 6 images"),
    ],
)
def test_damaged_packs_are_refused(damage, reason):
    packed = outcomes().pack()
    damage(packed)
    with pytest.raises(
        DataError, match=r"expected outcomes as Outcomes\.pack writes them"
    ) as found:
        Outcomes.unpack(packed)
    assert reason in str(found.value)


@pytest.mark.parametrize(
    "arrays",
    [
        (LABELS, CLEAN[:5]),
        (LABELS, CLEAN, TRIGGERED),
        (LABELS, CLEAN, TRIGGERED, COUNTED[:5], WANTED),
        (LABELS, CLEAN[:, None]),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(arrays):
    with pytest.raises(DataError, match=r"each of shape \(n,\)"):
        Outcomes(*arrays)


@pytest.mark.parametrize(
    ("o", "target"),
    [
        (Outcomes(LABELS + 1, CLEAN), None),
        (Outcomes(LABELS, CLEAN - 1), None),
        (Outcomes(LABELS, CLEAN, TRIGGERED + 5, COUNTED, WANTED), None),
        (Outcomes(LABELS, CLEAN, np.full(6, -1), COUNTED, WANTED), None),
        (Outcomes(LABELS, CLEAN), 3),
        (Outcomes(LABELS, CLEAN), -1),
    ],
)
def test_outcomes_of_other_classes_are_refused(o, target):
    with pytest.raises(DataError, match=r"expected labels, predictions and target from 0 to 2"):
        summarize(o, CLASSES, target=target)


# --- fingerprints of images


def test_fingerprints_tell_pictures_apart_and_know_them_again():
    images = torch.randint(0, 256, (50, 3, 5, 5), dtype=torch.uint8, generator=_generator(0))
    prints = fingerprints(images)
    assert prints.dtype == np.uint64
    assert len(np.unique(prints)) == 50
    assert np.array_equal(fingerprints(images.float() / 255), prints)
    assert np.array_equal(fingerprints(images.flip(0)), prints[::-1])
    assert len(fingerprints(images[:0])) == 0
    assert fingerprint(images) == fingerprint(images.float() / 255)
    assert fingerprint(images) != fingerprint(images.flip(0))
    assert fingerprint(images) != fingerprint(images.reshape(50, 5, 3, 5))


@settings(deadline=None)
@given(st.integers(0, 74), st.integers(0, 255), st.integers(0, 255))
def test_one_pixel_is_enough(place, a, b):
    images = torch.zeros(2, 75, dtype=torch.uint8)
    images[0, place], images[1, place] = a, b
    one, other = fingerprints(images.reshape(2, 3, 5, 5))
    assert (one == other) == (a == b)


def test_fingerprints_do_not_depend_on_blocks(monkeypatch):
    images = torch.randint(0, 256, (7, 1, 4, 4), dtype=torch.uint8, generator=_generator(1))
    whole = fingerprints(images)
    monkeypatch.setattr("excise.evaluation.hashing._BLOCK_BYTES", 300)
    assert np.array_equal(fingerprints(images), whole)


def _generator(seed):
    return torch.Generator().manual_seed(seed)
