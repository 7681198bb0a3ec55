"""Which classes stand out by a small number: Neural Cleanse's rule of the median.

Paper: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse, S&P 2019, section IV-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

__all__ = ["anomaly_indices"]


def anomaly_indices(norms: Sequence[float | None]) -> list[float | None]:
    """Return (median − n) / MAD of each number, MAD = 1.4826 · median |n − median|.

    A number far below the others has a large index; None, no number at all, has none. The median
    of an even count is the mean of the two in the middle. Where more than half of the numbers are
    equal, MAD is 0; then 1.2533 · mean |n − median| stands for it, which estimates the same
    deviation of a normal distribution. If all are equal, every index is 0.

    Args:
        norms: one a class, such as the size of the smallest trigger found for it.
    """
    known = [norm for norm in norms if norm is not None]
    if not known:
        return [None] * len(norms)
    middle = median(known)
    distances = [abs(norm - middle) for norm in known]
    scale = 1.4826 * median(distances) or 1.2533 * fmean(distances) or 1.0
    return [None if norm is None else (middle - norm) / scale for norm in norms]
