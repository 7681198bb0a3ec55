import json

import numpy as np
import pytest

from excise.errors import DataError, SpecError
from excise.evaluation import (
    Comparison,
    Evaluation,
    Interval,
    Outcomes,
    compare,
    der,
    evaluate,
    paired_der,
    paired_difference,
    summarize,
)
from excise.seeding import Rng

pytestmark = pytest.mark.fast

RNG = Rng(0)


def three(hand):
    """Before, after and a clean twin, drawn at random around sensible figures."""
    g = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 60)

    def some(answers, other, share):
        return np.where(g.random(len(labels)) < share, other, answers)

    shift = (labels + 1) % 4
    return (
        hand.evaluation(labels, some(labels, shift, 0.1), some(labels, 0, 0.95)),
        hand.evaluation(labels, some(labels, shift, 0.2), some(labels, 0, 0.1)),
        hand.evaluation(labels, some(labels, shift, 0.05), some(labels, 0, 0.02)),
    )


def test_values_are_the_plain_differences(hand):
    before, after, floor = three(hand)
    c = compare(before, after, RNG, floor)

    def value(interval):
        assert interval.low < interval.value < interval.high
        return pytest.approx(interval.value, abs=1e-12)

    assert after.acc.value - before.acc.value == value(c.delta_acc)
    assert after.asr.value - before.asr.value == value(c.delta_asr)
    assert after.ra.value - before.ra.value == value(c.delta_ra)
    assert after.asr.value - floor.asr.value == value(c.asr_over_floor)
    assert floor.ra.value - after.ra.value == value(c.ra_under_floor)
    recalls = [e.target_recall.value for e in (before, after, floor)]
    assert recalls[1] - recalls[0] == value(c.delta_target_recall)
    assert recalls[2] - recalls[1] == value(c.target_recall_under_floor)
    expected = der(before.asr.value, after.asr.value, before.acc.value, after.acc.value)
    assert expected == value(c.der)


def test_intervals_agree_with_the_single_ones(hand):
    before, after, _ = three(hand)
    c = compare(before, after, RNG)
    x, y = before.outcomes, after.outcomes
    rng = np.random.default_rng(1)

    def near(interval):
        # Two runs of 10,000 resamples differ by about 2 % of the width at either end.
        slack = 0.08 * (interval.high - interval.low)
        return pytest.approx((interval.low, interval.high), abs=slack)

    asr = paired_difference(x.success, y.success, rng, counted=x.counted)
    assert (c.delta_asr.low, c.delta_asr.high) == near(asr)
    acc = paired_difference(x.correct, y.correct, rng)
    assert (c.delta_acc.low, c.delta_acc.high) == near(acc)
    rating = paired_der(x.correct, y.correct, x.success, y.success, x.counted, rng)
    assert (c.der.low, c.der.high) == near(rating)


def test_the_seed_decides(hand):
    before, after, _ = three(hand)
    assert compare(before, after, RNG) == compare(before, after, Rng(0))
    assert compare(before, after, RNG) != compare(before, after, Rng(1))


def test_the_order_of_the_images_does_not_matter(hand):
    before, after, _ = three(hand)
    order = np.random.default_rng(1).permutation(before.n)

    def mixed(e):
        o = e.outcomes
        columns = (o.labels, o.clean, o.triggered, o.counted, o.wanted)
        return summarize(Outcomes(*(a[order] for a in columns)), e.classes, target=e.target)

    assert compare(mixed(before), mixed(after), RNG) == compare(before, after, RNG)


def test_no_change_gives_a_rating_of_one_half(hand):
    before, _, _ = three(hand)
    c = compare(before, before, RNG)
    assert c.der == Interval(0.5, 0.5, 0.5)
    assert c.delta_acc == c.delta_asr == c.delta_ra == Interval(0.0, 0.0, 0.0)


def test_without_a_trigger_only_clean_figures(hand):
    before, after = (hand.evaluation([0, 1, 1], clean) for clean in ([0, 1, 1], [1, 1, 1]))
    c = compare(before, after, RNG, before)
    assert c.delta_acc.value == pytest.approx(-1 / 3)
    assert c.delta_target_recall.value == -1
    assert c.target_recall_loss == c.target_recall_under_floor
    assert c.der is c.delta_asr is c.delta_ra is c.asr_over_floor is c.ra_under_floor is None


def test_without_target_or_without_its_images_no_recall(hand):
    labels = np.array([1, 2, 3])
    whole = hand.evaluation(labels, labels, labels)
    assert compare(whole, whole, RNG).delta_target_recall is None
    untold = hand.evaluation(labels, labels, target=None)
    c = compare(untold, untold, RNG)
    assert c.delta_target_recall is c.target_recall_loss is None


def test_nothing_counted_gives_no_attack_figures(hand):
    only = hand.evaluation([0, 0], [0, 1], [0, 0])
    c = compare(only, only, RNG)
    assert c.der is c.delta_asr is None
    assert c.delta_target_recall is not None


def test_recall_loss_is_measured_against_the_floor_where_there_is_one(hand):
    before, after, floor = (hand.made(50, recall=r) for r in (1.0, 0.8, 0.9))
    assert compare(before, after, RNG).target_recall_loss.value == pytest.approx(0.2)
    assert compare(before, after, RNG, floor).target_recall_loss.value == pytest.approx(0.1)
    loss = compare(before, after, RNG).target_recall_loss
    assert loss.low < loss.value < loss.high


def test_round_trip(hand):
    before, after, floor = three(hand)
    for c in (compare(before, after, RNG), compare(before, after, RNG, floor)):
        assert Comparison.from_json(json.loads(json.dumps(c.to_json()))) == c


@pytest.mark.parametrize("plain", [{}, {"delta_acc": None}])
def test_other_json_is_refused(plain):
    with pytest.raises(DataError, match=r"Write it with Comparison\.to_json"):
        Comparison.from_json(plain)


# --- refusals


def test_without_outcomes(hand):
    e = hand.made(5)
    read = Evaluation.from_json(e.to_json())
    with pytest.raises(DataError, match="evaluations with the outcome of each image"):
        compare(e, read, RNG)


def test_other_classes_or_targets(hand):
    e = hand.evaluation([0, 1], [0, 1])
    for other in (hand.evaluation([0, 1], [0, 1], k=3), hand.evaluation([0, 1], [0, 1], target=1)):
        with pytest.raises(DataError, match=r"the same classes and target \(here 4 and 0\)"):
            compare(e, other, RNG)


def test_other_images(hand):
    message = "expected the same test images in the same order"
    a, b = (hand.evaluation(labels, [0, 1]) for labels in ([0, 1], [1, 0]))
    with pytest.raises(DataError, match=message):
        compare(a, b, RNG)
    # Equal labels, other pictures.
    model, test = hand.Told([0, 1]), hand.numbered([0, 1])
    c, d = (evaluate(model, t) for t in (test, test.subset(test.labels).to("cpu")))
    compare(c, d, RNG)
    test.images[0, 0, 1, 1] = 9
    with pytest.raises(DataError, match=message):
        compare(c, evaluate(model, test), RNG)


def test_one_with_and_one_without_a_trigger(hand):
    a, b = hand.evaluation([0, 1], [0, 1]), hand.evaluation([0, 1], [0, 1], [0, 1])
    with pytest.raises(DataError, match="expected a trigger in every evaluation, or in none"):
        compare(a, b, RNG)
    with pytest.raises(DataError, match="expected a trigger in every evaluation, or in none"):
        compare(b, b, RNG, a)


def test_other_rules(hand):
    a = hand.evaluation([0, 1, 2], [0, 1, 2], [0, 0, 0])
    b = hand.evaluation([0, 1, 2], [0, 1, 2], [0, 0, 0], counted=[False, True, False])
    o = a.outcomes
    wanted = Outcomes(o.labels, o.clean, o.triggered, o.counted, o.wanted + 3)
    for other in (b, summarize(wanted, a.classes, target=0)):
        with pytest.raises(DataError, match="expected the same target rule in every evaluation"):
            compare(a, other, RNG)


def test_too_few_resamples(hand):
    e = hand.made(5)
    with pytest.raises(SpecError, match="at least 100 resamples"):
        compare(e, e, RNG, resamples=10)


@pytest.mark.parametrize(("lost", "of", "certain"), [(1, 1, False), (3, 3, False), (14, 14, True)])
def test_a_handful_of_images_of_the_target_is_certain_of_little(hand, lost, of, certain):
    labels = np.array([0] * of + [1, 2] * 50)
    after = labels.copy()
    after[:lost] = 1
    old, new = (hand.evaluation(labels, said, labels, k=3) for said in (labels, after))
    loss = compare(old, new, Rng(0)).target_recall_loss
    assert loss.value == 1.0
    assert (loss.low > 0.1) is certain
    same = compare(old, old, Rng(0)).target_recall_loss
    assert same.low < -0.1
    assert same.high > 0.1


def test_a_handful_of_images_is_certain_of_little_accuracy(hand):
    e = hand.evaluation([0, 1, 2, 1, 0], [0, 1, 2, 1, 0])
    same = compare(e, e, Rng(0)).delta_acc
    assert (same.value, same.low < -0.4, same.high > 0.4) == (0, True, True)
