import json

import numpy as np
import pytest

from excise.errors import DataError, SpecError
from excise.evaluation import Evaluation, Finding, Limits, Verdict, compare, judge, voided
from excise.evaluation._words import change, signed
from excise.evaluation.metrics import Interval
from excise.seeding import Rng

pytestmark = pytest.mark.fast

RNG = Rng(0)


def verdict(before, after, floor=None, limits=None):
    found = judge(before, after, compare(before, after, RNG, floor), floor, limits)
    # One sentence: one full stop that ends it, however many decimal points.
    assert found.sentence.endswith(".")
    assert ". " not in found.sentence
    assert Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found
    return found


def before(hand, n=200, **figures):
    return hand.made(n, **{"acc": 0.95, "asr": 1.0, "recall": 0.95, **figures})


def test_repaired(hand):
    old, new = before(hand), hand.made(200, acc=0.93, asr=0.01, recall=0.95)
    v = verdict(old, new)
    assert (v.status, v.ok) == ("repaired", True)
    interval = change(compare(old, new, RNG).delta_acc)
    assert interval.startswith("−1.5 points, 95% interval −2.")
    assert v.sentence == (
        "Repaired: the trigger now steers 1.0% of 600 images to the attacker's class "
        "(95% interval 0.5% to 2.2%; 100.0% before), and accuracy on 800 clean images went from "
        f"95.0% to 93.5% ({interval})."
    )


def test_still_working(hand):
    v = verdict(before(hand), hand.made(200, acc=0.95, asr=0.3, recall=0.95))
    assert (v.status, v.ok) == ("incomplete", False)
    assert "steers 30.0% of 600 images" in v.sentence
    assert "above the limit of 5.0%" in v.sentence


@pytest.mark.parametrize(("asr", "status"), [(0.05, "repaired"), (0.06, "incomplete")])
def test_the_limit_itself_is_allowed(hand, asr, status):
    assert verdict(before(hand), hand.made(200, acc=0.95, asr=asr, recall=0.95)).status == status


def test_too_few_images_to_tell(hand):
    old = hand.made(10, asr=1.0)
    v = verdict(old, hand.made(10, asr=0.0))
    assert (v.status, v.ok) == ("incomplete", False)
    assert "with only 30 images the true rate may be as high as 11.4%" in v.sentence
    assert verdict(hand.made(12, asr=1.0), hand.made(12, asr=0.0)).status == "repaired"  # 36


def test_the_floor_moves_the_limit(hand):
    after = hand.made(200, acc=0.95, asr=0.08, ra=0.9, recall=0.95)
    floor = hand.made(200, acc=0.95, asr=0.06, ra=0.9, recall=0.95)
    assert verdict(before(hand), after).status == "incomplete"
    v = verdict(before(hand), after, floor)
    assert v.status == "repaired"
    assert "6.0% in a network never poisoned" in v.sentence
    # A floor of 0 never makes the limit stricter than max_asr.
    assert Limits().asr(hand.made(10)) == 0.05
    assert Limits().asr(hand.evaluation([0], [0])) == 0.05
    assert Limits(max_asr=0.02).asr(hand.made(100, asr=0.01)) == pytest.approx(0.05)


def test_accuracy_lost(hand):
    v = verdict(before(hand), hand.made(200, acc=0.85, recall=0.95))
    assert (v.status, v.ok) == ("harmed", False)
    assert "beyond the 3.0% allowed" in v.sentence
    # Exactly the limit is allowed: 24 of 800.
    labels = np.repeat([0, 1, 2, 3], 200)
    lost = np.where((labels == 1) & (np.arange(800) < 224), 2, labels)
    one = hand.evaluation(labels, labels, 0 * labels)
    assert verdict(one, hand.evaluation(labels, lost, labels)).status == "repaired"
    lost[224] = 2
    assert verdict(one, hand.evaluation(labels, lost, labels)).status == "harmed"


def test_the_backdoor_comes_before_the_accuracy(hand):
    v = verdict(before(hand), hand.made(200, acc=0.5, asr=0.5, recall=0.5))
    assert v.status == "incomplete"
    assert "went from 95.0% to 50.0%" in v.sentence


def test_target_class_forgotten(hand):
    # With 43 classes a forgotten one costs 2.3 points of accuracy, within the allowed 3.
    labels = np.repeat(np.arange(43), 30)
    without = np.where(labels == 0, 1, labels)
    old = hand.evaluation(labels, labels, 0 * labels, k=43)
    new = hand.evaluation(labels, without, labels, k=43)
    v = verdict(old, new)
    assert (v.status, v.ok) == ("harmed", False)
    assert "recall of the target class 'class 0' is 100.0 points" in v.sentence
    assert "lower than before;" in v.sentence
    twin = hand.evaluation(labels, labels, labels, k=43)
    assert "lower than in a network never poisoned;" in verdict(old, new, twin).sentence
    assert verdict(old, new, new).status == "repaired"
    assert verdict(old, new, limits=Limits(max_recall_drop=1.0)).status == "repaired"


def test_triggered_images_still_not_recognized(hand):
    after = hand.made(200, acc=0.95, asr=0.0, ra=0.3, recall=0.95)
    floor = hand.made(200, acc=0.95, asr=0.0, ra=0.9, recall=0.95)
    v = verdict(before(hand), after, floor)
    assert (v.status, v.ok) == ("incomplete", False)
    assert "only 30.0% of the triggered images are recognized, 60.0 points" in v.sentence
    # Without a twin nobody knows what RA could be: the checks warn, unless guessing did better.
    assert verdict(before(hand), after).status == "repaired"


def test_blind_without_a_twin_to_compare_with(hand):
    old = before(hand)
    v = verdict(old, hand.made(200, acc=0.95, asr=0.0, ra=0.0, recall=0.95))
    assert (v.status, v.ok) == ("incomplete", False)
    assert "only 0.0% of the triggered images are recognized, fewer than by guessing" in v.sentence
    assert verdict(old, hand.made(200, acc=0.95, asr=0.0, ra=0.3, recall=0.95)).ok


def test_unchanged_and_still_backdoored(hand):
    v = verdict(before(hand), before(hand))
    assert (v.status, v.ok) == ("unchanged", False)
    assert "not one prediction on 800 test images differs" in v.sentence
    assert "above the limit" in v.sentence


def test_unchanged_and_never_backdoored(hand):
    old = before(hand, asr=0.01)
    v = verdict(old, old)
    assert (v.status, v.ok) == ("unchanged", True)
    assert "above the limit" not in v.sentence
    v = verdict(old, hand.made(200, acc=0.94, asr=0.0, recall=0.95))
    assert (v.status, v.ok) == ("unchanged", True)
    assert "there was no working backdoor to remove" in v.sentence
    assert verdict(old, hand.made(200, acc=0.5, asr=0.0, recall=0.95)).status == "harmed"


def test_without_a_trigger(hand):
    labels = np.repeat([0, 1, 2, 3], 50)
    one = hand.evaluation(labels, labels)
    v = verdict(one, hand.evaluation(labels, np.where(np.arange(200) < 2, 1, labels)))
    assert (v.status, v.ok) == ("clean-only", True)
    assert v.sentence == (
        "Clean images only: accuracy on 200 clean images went from 100.0% to 99.0% (−1.0 points, "
        "95% interval −2.5 to ±0.0); whether a backdoor is left cannot be told without its trigger."
    )
    worse = verdict(one, hand.evaluation(labels, np.where(np.arange(200) < 30, 1, labels)))
    assert (worse.status, worse.ok) == ("harmed", False)
    only_target = hand.evaluation([0] * 9, [0] * 9, [0] * 9)
    assert verdict(only_target, only_target).status == "clean-only"


def test_a_problem_found_before_any_work_voids_every_verdict(hand):
    good = verdict(before(hand), hand.made(200, acc=0.94, asr=0.0, recall=0.95))
    warning, problem = (
        Finding("near-chance", level, f"A {level}.") for level in ("warning", "problem")
    )
    assert voided(good, ()) == voided(good, [warning]) == good
    v = voided(good, [warning, problem])
    assert (v.status, v.ok) == ("void", False)
    assert v.sentence.startswith("Void: A problem. Otherwise repaired: ")
    assert Verdict.from_json(v.to_json()) == v


def test_evaluations_read_from_json_can_be_judged(hand):
    old, new = before(hand), hand.made(200, acc=0.94, asr=0.01, recall=0.95)
    found = compare(old, new, RNG)
    read = (Evaluation.from_json(e.to_json()) for e in (old, new))
    assert judge(*read, found) == judge(old, new, found)


@pytest.mark.parametrize("name", ["max_asr", "max_accuracy_drop", "asr_doubt"])
@pytest.mark.parametrize("value", [-0.1, 5.0, float("nan")])
def test_limits_are_fractions(name, value):
    with pytest.raises(SpecError, match=rf"expected {name} in \[0, 1\].*Divide percentages"):
        Limits(**{name: value})


@pytest.mark.parametrize("plain", [{}, {"status": "fine", "sentence": "", "ok": True}])
def test_other_json_is_refused(plain):
    with pytest.raises(DataError, match=r"Write it with Verdict\.to_json"):
        Verdict.from_json(plain)


def test_signs():
    assert [signed(d) for d in (0.012, -0.012, 0.0, -0.0001)] == ["+1.2", "−1.2", "±0.0", "±0.0"]
    assert change(Interval(-0.01, -0.02, 0.005)) == "−1.0 points, 95% interval −2.0 to +0.5"
