import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.errors import DataError, SpecError
from excise.evaluation import Interval, Rate, der, paired_der, paired_difference
from excise.evaluation.metrics import PairedBootstrap, share

pytestmark = pytest.mark.fast
fraction = st.floats(0, 1)


# --- rates


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3 (Wilson).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By hand: z² = 3.8415; with no success the upper end is z² / (n + z²) = 3.8415 / 13.8415.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        # By hand: center ½, half width z·√(n/4 + z²/4)/(n + z²) = 1.96·√3.4604/13.8415 = .2634.
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson(count, n, low, high):
    rate = Rate(count, n)
    assert rate.value == count / n
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=5e-5)


def test_a_rate_of_nothing_has_no_value_and_says_nothing():
    assert Rate(0, 0).to_json() == {"value": None, "low": 0.0, "high": 1.0, "count": 0, "n": 0}


def test_rate_of_hits():
    assert Rate.of(np.array([True, False, True])) == Rate(2, 3)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_holds_its_value_and_round_trips(a, b):
    rate = Rate(min(a, b), max(a, b))
    assert 0 <= rate.low <= (rate.value or rate.low) <= rate.high <= 1
    assert Rate.from_json(rate.to_json()) == rate


@pytest.mark.parametrize("count", [-1, 6])
def test_a_count_outside_is_refused(count):
    with pytest.raises(DataError, match=r"expected a count from 0 to n, got -?\d of 5"):
        Rate(count, 5)


@pytest.mark.parametrize("plain", [{"count": 1}, None])
def test_rate_from_other_json_is_refused(plain):
    with pytest.raises(DataError, match=r"Write it with Rate\.to_json"):
        Rate.from_json(plain)


def test_interval_round_trips():
    interval = Interval(0.1, -0.2, 0.3)
    assert Interval.from_json(interval.to_json()) == interval
    with pytest.raises(DataError, match=r"Write it with Interval\.to_json"):
        Interval.from_json({"value": 1.0})


# --- DER


@pytest.mark.parametrize(
    ("asr0", "asr", "acc0", "acc", "expected"),
    [
        (1.0, 0.1, 0.9, 0.85, 0.925),  # the worked example of the definition
        (0.7, 0.7, 0.9, 0.9, 0.5),  # no change
        (0.7, 0.8, 0.9, 0.95, 0.5),  # a worse ASR costs nothing, a better ACC earns nothing
        (1.0, 0.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 1.0, 0.0, 0.0),
    ],
)
def test_der(asr0, asr, acc0, acc, expected):
    assert der(asr0, asr, acc0, acc) == pytest.approx(expected, abs=1e-12)


@given(fraction, fraction, fraction, fraction)
def test_der_lies_in_0_1(asr0, asr, acc0, acc):
    assert 0 <= der(asr0, asr, acc0, acc) <= 1


@pytest.mark.parametrize("bad", [95.0, -0.1, float("nan")])
def test_der_refuses_what_is_no_fraction(bad):
    with pytest.raises(DataError, match=r"expected rates in \[0, 1\].*Divide percentages by 100"):
        der(bad, 0.1, 0.9, 0.9)


# --- paired bootstrap


def outcomes(seed, n=300):
    """Outcomes of n images that hang together, as those of two related networks do."""
    g = np.random.default_rng(seed)
    hard = g.random(n)
    correct0, correct = hard + 0.1 * g.random(n) < 0.9, hard + 0.3 * g.random(n) < 0.9
    counted = g.random(n) < 0.9
    success0, success = g.random(n) < 0.95, (g.random(n) < 0.3) & (hard > 0.4)
    return correct0, correct, success0, success, counted


def slow_bootstrap(columns, figure, resamples, seed):
    """The bootstrap as the books write it: draw n images with replacement, compute, repeat."""
    g = np.random.default_rng(seed)
    n = len(columns[0])
    figures = []
    for _ in range(resamples):
        drawn = g.integers(0, n, n)
        figures.append(figure(*(column[drawn] for column in columns)))
    return np.percentile(figures, [2.5, 97.5])


def test_der_interval_agrees_with_the_slow_bootstrap():
    columns = outcomes(0)

    def figure(correct0, correct, success0, success, counted):
        return der(
            success0[counted].mean(), success[counted].mean(), correct0.mean(), correct.mean()
        )

    fast = paired_der(*columns, np.random.default_rng(1))
    assert fast.value == figure(*columns)
    # With 4000 resamples an end of the interval wanders by about 3 % of the interval's width.
    tolerance = 0.1 * (fast.high - fast.low)
    slow = slow_bootstrap(columns, figure, 4000, seed=2)
    assert (fast.low, fast.high) == pytest.approx(slow, abs=tolerance)


def test_difference_agrees_with_the_slow_bootstrap():
    _, _, before, after, counted = outcomes(3)
    fast = paired_difference(before, after, np.random.default_rng(1), counted=counted)
    slow = slow_bootstrap(
        [before, after, counted], lambda b, a, c: a[c].mean() - b[c].mean(), 4000, seed=2
    )
    assert fast.value == pytest.approx(after[counted].mean() - before[counted].mean())
    assert (fast.low, fast.high) == pytest.approx(slow, abs=0.1 * (fast.high - fast.low))


def test_difference_has_the_width_theory_gives():
    # b of n images get lost, c are won: the variance of the difference is (b + c − (b−c)²/n)/n².
    n, b, c = 1000, 80, 30
    before, after = np.zeros(n, bool), np.zeros(n, bool)
    before[:b] = True
    after[b : b + c] = True
    found = paired_difference(before, after, np.random.default_rng(0))
    sd = np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found.value == pytest.approx(-0.05)
    assert (found.low, found.high) == pytest.approx(
        (-0.05 - 1.96 * sd, -0.05 + 1.96 * sd), abs=2e-3
    )


def test_pairing_is_used():
    # The same images are right before and after: nothing about the difference is uncertain.
    same = np.arange(200) % 2 == 0
    assert paired_difference(same, same, np.random.default_rng(0)) == Interval(0.0, 0.0, 0.0)
    # As unrelated halves the difference is as uncertain as theory says.
    g = np.random.default_rng(0)
    assert paired_difference(same, g.permutation(same), g).low < -0.08


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_order_does_not_matter_and_ends_lie_in_range(seed, n):
    columns = list(outcomes(seed, n))
    columns[-1][0] = True
    mixed = np.random.default_rng(seed).permutation(n)
    one = paired_der(*columns, np.random.default_rng(5), resamples=200)
    other = paired_der(*(c[mixed] for c in columns), np.random.default_rng(5), resamples=200)
    assert one == other
    assert 0 <= one.low <= one.high <= 1
    assert 0 <= one.value <= 1


def test_the_generator_decides():
    columns = outcomes(1)
    a, b, c = (paired_der(*columns, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a == b != c


def test_a_resample_without_counted_images_does_not_count():
    counted = np.array([True] + [False] * 9)
    yes, no = np.ones(10, bool), np.zeros(10, bool)
    found = paired_difference(yes, no, np.random.default_rng(0), counted=counted)
    assert found == Interval(-1.0, -1.0, -1.0)


def test_share_of_nothing_is_nan():
    shares = share(np.array([0.0, 1.0]), np.array([0.0, 4.0]))
    assert np.isnan(shares[0])
    assert shares[1] == 0.25


@pytest.mark.parametrize(("a", "b"), [(3, 4), (0, 0)])
def test_outcomes_of_other_images_are_refused(a, b):
    with pytest.raises(DataError, match="expected outcomes of the same images, at least one"):
        PairedBootstrap({"a": np.ones(a, bool), "b": np.ones(b, bool)}, np.random.default_rng(0))


def test_differences_of_other_lengths_are_refused():
    with pytest.raises(DataError, match=r"got before \(3,\), after \(4,\), counted \(3,\)"):
        paired_difference(np.ones(3, bool), np.ones(4, bool), np.random.default_rng(0))


def test_no_columns_are_refused():
    with pytest.raises(DataError, match="got none"):
        PairedBootstrap({}, np.random.default_rng(0))


def test_nothing_counted_is_refused():
    no = np.zeros(3, bool)
    with pytest.raises(DataError, match="expected at least one counted image, got none"):
        paired_difference(no, no, np.random.default_rng(0), counted=no)
    with pytest.raises(DataError, match="expected at least one counted image, got none"):
        paired_der(no, no, no, no, no, np.random.default_rng(0))


def test_few_resamples_are_refused():
    yes = np.ones(3, bool)
    with pytest.raises(SpecError, match="expected at least 100 resamples, got 99"):
        paired_difference(yes, yes, np.random.default_rng(0), resamples=99)
