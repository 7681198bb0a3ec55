"""How surprising one class's number would be, if it came from where the others' come from.

Numbers             v_1 … v_K, one a class, such as the logarithms of the smallest triggers' sizes
Of class c          d_c = (m − v_c) / (s √(1 + 1 / (K − 1))), m and s the mean and the standard
                    deviation of the others
Normal others       d_c follows Student's t distribution of K − 2 degrees; its upper tail is p_c
Of K classes        1 − (1 − p_c)^K, the chance that some class stands out as far

The suspicion of a class is −log₁₀ of that. A class is compared with the others alone, so that it
does not hide itself by widening the spread; with few others the tail is heavy, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

__all__ = ["LEAST", "of_any", "surprise", "suspicions"]

#: The fewest numbers that say anything: three others have two degrees of freedom.
LEAST = 4


def suspicions(numbers: Sequence[float | None], least_spread: float = 0.0) -> list[float]:
    """Return how suspicious each class is by a number below the others'; 0 at least.

    Args:
        numbers: one a class. None, no number, is not suspicious and is no company for others.
        least_spread: a smaller standard deviation of the others is taken for this one: numbers that
            a search has found agree by chance, or because they all ran into the same wall.
    """
    known = [(c, v) for c, v in enumerate(numbers) if v is not None and math.isfinite(v)]
    found = [0.0] * len(numbers)
    k = len(known)
    if k < LEAST:
        return found
    values = np.array([v for _, v in known])
    total, squares = values.sum(), ((values - values.mean()) ** 2).sum()
    mean = (total - values) / (k - 1)
    # The others' sum of squares, from that of all: what class c adds is K / (K − 1) (v_c − v̄)².
    rest = squares - (values - values.mean()) ** 2 * k / (k - 1)
    # Others that agree to rounding have a spread all the same: that of their own rounding.
    least = max(least_spread, 1e-6 * (float(np.abs(values).max()) + 1e-12))
    deviation = np.maximum(np.sqrt(np.maximum(rest, 0) / (k - 2)), least)
    tails = student.sf((mean - values) / (deviation * math.sqrt(1 + 1 / (k - 1))), k - 2)
    for (c, _), tail in zip(known, tails.tolist(), strict=True):
        found[c] = max(0.0, surprise(of_any(tail, k)))
    return found


def of_any(tail: float, k: int) -> float:
    """Return 1 − (1 − tail)^k, exact also where ``tail`` is tiny: that of any of k chances."""
    return 1.0 if tail >= 1 else -math.expm1(k * math.log1p(-tail))


def surprise(p: float) -> float:
    """Return −log₁₀ p, cut off at 300."""
    return -math.log10(max(p, 1e-300))
