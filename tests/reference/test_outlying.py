"""Suspicion of a class among others, against hand-worked values and scipy's own interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from excise.inversion.outlying import suspicions

pytestmark = pytest.mark.fast


def test_a_class_far_below_three_others_is_as_suspicious_as_worked_by_hand() -> None:
    # Others 1, 2, 3: mean 2, deviation 1. d = (2 − (−2)) / √(4/3) = 3.464, t with 2 degrees:
    # tail = ½ (1 − d / √(2 + d²)) = ½ (1 − 3.4641 / 3.7417) = .03709; 1 − (1 − p)⁴ = .1403
    found = suspicions([1.0, 2.0, 3.0, -2.0])
    assert found[3] == pytest.approx(-math.log10(0.1403), abs=1e-3)
    assert max(found[:3]) < 0.1


def test_a_spread_below_the_least_is_not_believed() -> None:
    # Others 0, 0, 0 with the deviation 2 instead: d = 4 / (2 √(4/3)) = 1.732, tail .1127
    found = suspicions([0.0, 0.0, 0.0, -4.0], 2.0)
    assert found[3] == pytest.approx(-math.log10(1 - (1 - 0.1127) ** 4), abs=1e-3)
    assert suspicions([0.0, 0.0, 0.0, -4.0])[3] > 5


def test_a_class_without_a_number_is_not_suspicious_and_no_company() -> None:
    with_gap = suspicions([1.0, None, 2.0, 3.0, -2.0])
    without = suspicions([1.0, 2.0, 3.0, -2.0])
    assert with_gap[1] == 0
    assert [with_gap[i] for i in (0, 2, 3, 4)] == pytest.approx(without)


@pytest.mark.parametrize("numbers", [[], [1.0], [1.0, -9.0, None, 2.0], [None] * 6])
def test_with_fewer_than_four_numbers_none_stands_out(numbers) -> None:
    assert suspicions(numbers) == [0.0] * len(numbers)


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.floats(0.01, 1))
def test_it_is_the_prediction_interval_of_each_class_from_the_others(numbers, least) -> None:
    found = suspicions(numbers, least)
    for c, value in enumerate(numbers):
        others = np.delete(np.array(numbers), c)
        n = len(others)
        deviation = max(others.std(ddof=1), least)
        d = (others.mean() - value) / (deviation * math.sqrt(1 + 1 / n))
        p = -math.expm1(len(numbers) * math.log1p(-min(student.sf(d, n - 1), 1 - 1e-16)))
        assert found[c] == pytest.approx(max(0.0, -math.log10(max(p, 1e-300))), abs=1e-6)
