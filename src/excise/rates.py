"""A fraction of images with its Wilson interval, and any other figure with its interval.

Source: docs/conventions.md, "Intervals"; Wilson, JASA 1927. Every fraction is in [0, 1]; nothing
here is in percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from excise.errors import DataError

__all__ = ["CONFIDENCE", "Interval", "Rate"]

CONFIDENCE = 0.95


@lru_cache(maxsize=65536)
def _wilson(count: int, n: int) -> tuple[float, float]:
    found = binomtest(count, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Rate:
    """How many of ``n`` images did something, with a Wilson 95 % interval.

    Args:
        count: how many did.
        n: how many were looked at; with 0 there is no value and the interval is [0, 1].

    Raises:
        DataError: ``count`` does not lie in [0, n].
    """

    count: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n:
            raise DataError(
                "a count from 0 to n",
                got=f"{self.count} of {self.n}",
                remedy="Count the same images above and below the line.",
            )

    @classmethod
    def of(cls, hits: npt.NDArray[np.bool_]) -> Rate:
        """Return the rate of True in ``hits``, of any shape."""
        return cls(int(hits.sum()), int(hits.size))

    @property
    def value(self) -> float | None:
        """The fraction, or None where nothing was looked at."""
        return self.count / self.n if self.n else None

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return _wilson(self.count, self.n)[0] if self.n else 0.0

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return _wilson(self.count, self.n)[1] if self.n else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return ``{"value", "low", "high", "count", "n"}``, ready for a record."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "n": self.n,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Rate:
        """Return the rate :meth:`to_json` wrote; value and interval are computed anew.

        Raises:
            DataError: ``plain`` is not such a form.
        """
        try:
            return cls(int(plain["count"]), int(plain["n"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                'a rate {"count", "n", …}',
                got=f"{plain!r}",
                remedy="Write it with Rate.to_json.",
            ) from error


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return ``{"value", "low", "high"}``, ready for a record."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Interval:
        """Return the interval :meth:`to_json` wrote.

        Raises:
            DataError: ``plain`` is not such a form.
        """
        try:
            return cls(float(plain["value"]), float(plain["low"]), float(plain["high"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                'an interval {"value", "low", "high"}',
                got=f"{plain!r}",
                remedy="Write it with Interval.to_json.",
            ) from error
