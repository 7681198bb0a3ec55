"""Every check: once where it must fire, once where it must not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from excise.errors import DataError
from excise.evaluation import Evaluation, Finding, Rate, check, compare
from excise.evaluation import checks as c
from excise.seeding import Rng
from excise.types import DefenderData, Edit, LabelledImages

pytestmark = pytest.mark.fast

RNG = Rng(0)


def levels(findings):
    return [(f.name, f.level) for f in findings]


def test_a_sound_repair_draws_no_finding(hand):
    n = 400
    before = hand.made(n, acc=0.96, asr=0.98, recall=0.96)
    after = hand.made(n, acc=0.95, asr=0.01, ra=0.93, recall=0.95)
    floor = hand.made(n, acc=0.96, asr=0.01, ra=0.95, recall=0.96)
    g = torch.Generator().manual_seed(0)
    test = hand.numbered(before.outcomes.labels)
    own = hand.numbered([0, 1, 2, 3])
    own.images[:] = torch.randint(100, 256, own.images.shape, generator=g)
    defender = DefenderData(own.subset(torch.tensor([0, 1])), own.subset(torch.tensor([2, 3])), "")
    old, new = nn.Linear(2, 2).eval(), nn.Linear(2, 2).eval()
    found = check(
        before,
        after,
        compare(before, after, RNG, floor),
        floor=floor,
        planted_asr=0.97,
        test=test,
        defender=defender,
        edits=(Edit("silence", "conv", 0, 1),),
        model_before=old,
        model_after=new,
    )
    assert found == ()


def test_check_runs_every_check_and_puts_the_gravest_first(hand):
    labels = np.repeat([0, 1, 2, 3], 5)
    everywhere = np.ones(20, bool)
    before = hand.evaluation(labels, labels, 0 * labels, counted=everywhere)
    after = hand.evaluation(labels, labels, labels, counted=everywhere)
    test = hand.numbered(labels)
    model = hand.Told(labels)
    found = check(
        before,
        after,
        compare(before, after, RNG),
        planted_asr=0.2,
        test=test,
        defender=DefenderData(test, test, ""),
        model_before=model,
        model_after=model,
    )
    assert levels(found) == [
        ("target-class-counted", "problem"),
        ("target-class-counted", "problem"),
        ("splits-overlap", "problem"),
        ("test-images-seen", "problem"),
        ("training-mode", "problem"),
        ("shared-weights", "problem"),
        ("not-as-planted", "warning"),
        ("training-mode", "warning"),
        ("few-images", "warning"),
    ]
    assert len({f.message for f in found}) == len(found)


def test_check_of_clean_figures_alone(hand):
    labels = np.repeat([0, 1, 2, 3], 300)
    e = hand.evaluation(labels, labels, target=None)
    other = hand.evaluation(labels, np.where(np.arange(1200) % 50, labels, 0), target=None)
    assert check(e, other, compare(e, other, RNG)) == ()


def test_findings_round_trip():
    finding = Finding("few-images", "warning", "Few.")
    assert Finding.from_json(finding.to_json()) == finding
    for plain in ({"name": "x"}, {**finding.to_json(), "level": "grave"}):
        with pytest.raises(DataError, match=r"Write it with Finding\.to_json"):
            Finding.from_json(plain)


# --- near chance


@pytest.mark.parametrize(
    ("acc", "n", "expected"),
    [
        (0.25, 100, [("near-chance", "problem")]),
        (0.1, 100, [("near-chance", "problem")]),
        (0.5, 2, [("near-chance", "warning")]),
        (0.5, 100, []),
    ],
)
def test_near_chance(hand, acc, n, expected):
    e = hand.made(n, acc=acc, recall=acc)
    found = c.near_chance(e)
    assert levels(found) == expected
    assert all("25.0%" in f.message for f in found)


def test_one_answer_for_everything_is_near_chance(hand):
    labels = np.repeat([0, 1], [95, 5])
    assert levels(c.near_chance(hand.evaluation(labels, 0 * labels))) == [
        ("near-chance", "problem")
    ]
    # A folder with images of one class only is not to blame.
    assert c.near_chance(hand.evaluation(labels[:95], labels[:95])) == ()


def test_one_class_has_no_chance(hand):
    assert c.near_chance(hand.evaluation([0, 0], [0, 0], k=1)) == ()


# --- the backdoor never took


def test_backdoor_never_took_against_chance(hand):
    assert levels(c.backdoor_never_took(hand.made(100, asr=0.2))) == [
        ("backdoor-never-took", "problem")
    ]
    part = c.backdoor_never_took(hand.made(100, asr=0.4))
    assert levels(part) == [("backdoor-never-took", "warning")]
    assert "took only in part" in part[0].message
    assert c.backdoor_never_took(hand.made(100, asr=0.9)) == ()
    assert c.backdoor_never_took(hand.evaluation([0, 1], [0, 1])) == ()
    assert c.backdoor_never_took(hand.evaluation([0, 0], [0, 0], [0, 0])) == ()


def test_backdoor_never_took_against_the_floor(hand):
    # 80 % looks like a backdoor, until a network never poisoned does the same.
    before, floor = hand.made(100, asr=0.8), hand.made(100, asr=0.79)
    (found,) = c.backdoor_never_took(before, floor)
    assert found.level == "problem"
    assert "no higher than a network never poisoned" in found.message
    assert c.backdoor_never_took(before, hand.made(100, asr=0.1)) == ()
    # 20 % is above this floor, so something took.
    assert levels(c.backdoor_never_took(hand.made(100, asr=0.2), hand.made(100))) == [
        ("backdoor-never-took", "warning")
    ]


def test_not_as_planted(hand):
    before = hand.made(100, asr=0.9)
    (found,) = c.not_as_planted(before, 0.5)
    assert (found.name, found.level) == ("not-as-planted", "warning")
    (far,) = c.not_as_planted(hand.made(100, asr=0.1), 0.9)
    assert (far.name, far.level) == ("not-as-planted", "problem")
    assert "50.0%" in found.message
    assert c.not_as_planted(before, 0.93) == ()
    assert c.not_as_planted(before, None) == ()
    assert c.not_as_planted(hand.evaluation([0, 1], [0, 1]), 0.5) == ()


def test_floor_is_high(hand):
    assert levels(c.floor_is_high(hand.made(100, asr=0.4))) == [("floor-is-high", "warning")]
    assert c.floor_is_high(hand.made(100, asr=0.1)) == ()
    assert c.floor_is_high(None) == ()
    assert c.floor_is_high(hand.evaluation([0, 1], [0, 1])) == ()


def test_target_class_counted(hand):
    labels = [0, 0, 1, 2]
    free = hand.evaluation(labels, labels, [0, 0, 0, 0], counted=[True] * 4)
    (found,) = c.target_class_counted(free)
    assert (found.name, found.level) == ("target-class-counted", "problem")
    assert "2 of 4 images" in found.message
    assert c.target_class_counted(hand.evaluation(labels, labels, [0, 0, 0, 0])) == ()
    assert c.target_class_counted(hand.evaluation(labels, labels)) == ()
    assert c.target_class_counted(Evaluation.from_json(free.to_json())) == ()


# --- data


def data(hand, numbers):
    return hand.numbered(torch.zeros(40, dtype=torch.int64)).subset(torch.tensor(numbers))


def test_splits_overlap_with_the_test_images(hand):
    test = data(hand, range(20))
    defender = DefenderData(data(hand, [25, 3]), data(hand, [30, 7, 8]), "")
    (found,) = c.splits_overlap(test, defender)
    assert (found.name, found.level) == ("test-images-seen", "problem")
    assert "3 of the defender's 5 images are test images" in found.message
    assert c.splits_overlap(test, DefenderData(data(hand, [25]), data(hand, [30]), "")) == ()
    assert c.splits_overlap(test, None) == ()
    assert c.splits_overlap(None, defender) == ()


def test_one_image_of_many_that_a_data_set_repeats_is_a_warning(hand):
    images = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    many = LabelledImages(images, torch.zeros(200, dtype=torch.int64), ("a", "b"))
    for shared, level in ((2, "warning"), (3, "problem")):
        test = many.subset(torch.arange(shared))
        (found,) = c.splits_overlap(test, DefenderData(many, None, ""))
        assert (found.name, found.level) == ("test-images-seen", level)


def test_splits_overlap_in_the_defenders_own(hand):
    (found,) = c.splits_overlap(None, DefenderData(data(hand, [1, 2]), data(hand, [2, 3]), ""))
    assert "1 of 2 validation images are training images" in found.message
    assert c.splits_overlap(None, DefenderData(data(hand, [1, 1]), None, "")) == ()


def test_a_float_copy_of_a_test_image_is_found_and_another_size_is_not(hand):
    test, own = data(hand, range(20)), data(hand, [4])
    floats = type(own)(own.images.double() / 255, own.labels, own.classes)
    assert len(c.splits_overlap(test, DefenderData(floats, None, ""))) == 1
    # All black of another size: equal sums, other pictures.
    black = type(own)(own.images[:, :, :1] * 0, own.labels, own.classes)
    assert c.splits_overlap(data(hand, [0]), DefenderData(black, None, "")) == ()


# --- networks


def test_left_in_training_mode():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout())).eval()
    assert c.left_in_training_mode(model, "the network", "problem") == ()
    assert c.left_in_training_mode(None, "the network", "problem") == ()
    model[1].train()
    (found,) = c.left_in_training_mode(model, "the network", "problem")
    assert (found.name, found.level) == ("training-mode", "problem")
    assert "2 modules of the network are in training mode (first: 1)" in found.message
    (found,) = c.left_in_training_mode(nn.Linear(1, 1), "it", "warning")
    assert "1 modules of it" in found.message


def test_shares_weights():
    a, b = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    assert c.shares_weights(a, b) == ()
    assert c.shares_weights(a, copy.deepcopy(a)) == ()
    assert c.shares_weights(a, None) == ()
    b.running_mean = a.running_mean
    (found,) = c.shares_weights(a, b)
    assert (found.name, found.level) == ("shared-weights", "problem")
    assert "shares 1 tensors" in found.message
    assert "running_mean" in found.message


def test_nothing_changed(hand):
    e, other = hand.made(10, acc=0.9), hand.made(10, acc=0.8)
    edits = (Edit("silence", "conv", 0, 1),)
    old, same, new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    same.load_state_dict(old.state_dict())
    assert levels(c.nothing_changed(e, e, (), old, same)) == [("nothing-changed", "warning")]
    (found,) = c.nothing_changed(e, e, edits, old, same)
    assert found.level == "problem"
    assert "lists 1 edits" in found.message
    # Other weights, the same answers.
    assert levels(c.nothing_changed(e, e, edits, old, new)) == [("nothing-changed", "note")]
    assert levels(c.nothing_changed(e, e, (), old, nn.Linear(2, 3))) == [
        ("nothing-changed", "note")
    ]
    assert levels(c.nothing_changed(e, e)) == [("nothing-changed", "note")]
    # The same weights, other answers: a clamp or a plug-in did it.
    assert c.nothing_changed(e, other, edits, old, same) == ()
    assert c.nothing_changed(e, other, edits, old, new) == ()


def test_same_predictions(hand):
    a, b = hand.made(10, acc=0.9), hand.made(10, acc=0.8)
    assert c.same_predictions(a, a)
    assert not c.same_predictions(a, b)
    # The trigger's part counts as well, and so does whether there is one.
    attacked = hand.made(10, acc=0.9, asr=0.5)
    assert not c.same_predictions(a, attacked)
    clean = hand.evaluation(a.outcomes.labels, a.outcomes.clean)
    assert not c.same_predictions(a, clean)
    assert c.same_predictions(clean, clean)
    read = [Evaluation.from_json(e.to_json()) for e in (a, b, attacked)]
    assert c.same_predictions(a, read[0])
    assert not c.same_predictions(a, read[1])
    assert not c.same_predictions(read[0], read[2])


# --- what the low ASR cost


def test_accuracy_collapsed(hand):
    before = hand.made(100, acc=0.9, asr=1.0)
    for acc, asr, expected in [(0.3, 0.1, 1), (0.3, 1.0, 0), (0.85, 0.1, 0)]:
        after = hand.made(100, acc=acc, asr=asr)
        found = c.accuracy_collapsed(before, after, compare(before, after, RNG))
        assert len(found) == expected
        assert all((f.name, f.level) == ("accuracy-collapsed", "problem") for f in found)
    clean = hand.evaluation([0, 1] * 50, [0, 1] * 50), hand.evaluation([0, 1] * 50, [2, 2] * 50)
    assert c.accuracy_collapsed(*clean, compare(*clean, RNG)) == ()


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        (0.5, [("target-forgotten", "problem")]),
        (0.94, [("target-forgotten", "warning")]),  # 4 points: beyond 0, not wholly beyond 3
        (0.96, []),
        (1.0, []),
    ],
)
def test_target_forgotten(hand, recall, expected):
    before, after = hand.made(200, asr=1.0, recall=0.98), hand.made(200, recall=recall)
    found = c.target_forgotten(after, compare(before, after, RNG))
    assert levels(found) == expected
    assert all("'class 0'" in f.message and "than before the repair" in f.message for f in found)


def test_one_target_image_more_or_less_proves_nothing(hand):
    before, after = hand.made(20, recall=1.0), hand.made(20, recall=0.95)
    assert c.target_forgotten(after, compare(before, after, RNG)) == ()


def test_target_forgotten_is_measured_against_the_floor(hand):
    # The backdoored network called too much its target class; the twin shows what is normal.
    before, after = hand.made(200, asr=1.0, recall=1.0), hand.made(200, recall=0.8)
    twin, better = hand.made(200, recall=0.8), hand.made(200, recall=0.95)
    assert c.target_forgotten(after, compare(before, after, RNG, twin)) == ()
    (found,) = c.target_forgotten(after, compare(before, after, RNG, better))
    assert "than in a network never poisoned" in found.message


def test_class_forgotten(hand):
    labels = np.repeat([0, 1, 2, 3], 50)
    lost = np.where(labels == 2, np.where(np.arange(200) % 2, 2, 3), labels)
    before, after = hand.evaluation(labels, labels), hand.evaluation(labels, lost)
    (found,) = c.class_forgotten(before, after)
    assert (found.name, found.level) == ("class-forgotten", "warning")
    assert "1 of 4 classes" in found.message
    assert "'class 2'" in found.message
    assert c.class_forgotten(after, before) == ()
    assert c.class_forgotten(before, before) == ()
    all_lost = hand.evaluation(np.arange(80) % 8, np.zeros(80, int), k=8)
    whole = hand.evaluation(np.arange(80) % 8, np.arange(80) % 8, k=8)
    assert c.class_forgotten(whole, all_lost)[0].message.endswith("and others.")
    # One image a class, or none, proves nothing.
    few = hand.evaluation([0, 1], [0, 1]), hand.evaluation([0, 1], [0, 2])
    assert c.class_forgotten(*few) == ()


def test_not_recovered_against_the_same_images_without_the_trigger(hand):
    before = hand.made(100, asr=1.0)
    for asr, ra, expected in [(0.0, 0.3, 1), (0.0, 0.9, 0), (0.5, 0.3, 0)]:
        after = hand.made(100, asr=asr, ra=ra)
        found = c.not_recovered(after, compare(before, after, RNG))
        assert levels(found) == [("not-recovered", "warning")] * expected
    read = Evaluation.from_json(hand.made(100, asr=0.0, ra=0.3).to_json())
    assert c.not_recovered(read, compare(before, before, RNG)) == ()
    clean = hand.evaluation([0, 1], [0, 1])
    assert c.not_recovered(clean, compare(clean, clean, RNG)) == ()


def test_not_recovered_against_the_floor(hand):
    before, after = hand.made(100, asr=1.0), hand.made(100, ra=0.3)
    better, alike = hand.made(100, ra=0.9), hand.made(100, ra=0.35)
    (found,) = c.not_recovered(after, compare(before, after, RNG, better))
    assert (found.name, found.level) == ("not-recovered", "problem")
    assert "60.0 points" in found.message
    # The trigger hides the picture from every network: nobody's fault.
    assert c.not_recovered(after, compare(before, after, RNG, alike)) == ()


def test_few_images(hand):
    few, many = hand.made(20, acc=0.8), hand.made(400, acc=0.8)
    (found,) = c.few_images(few, few)
    assert (found.name, found.level) == ("few-images", "warning")
    assert found.message.startswith("80 test images")
    assert "accuracy after" in found.message
    assert c.few_images(many, many) == ()


def test_nothing_counted_is_too_few(hand):
    labels = np.zeros(1000, int)
    e = hand.evaluation(labels, labels, labels)
    assert e.asr == Rate(0, 0)
    (found,) = c.few_images(e, e)
    assert "ASR after unknown (no images)" in found.message
