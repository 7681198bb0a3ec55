"""DER, and paired bootstrap intervals for differences; rates come from :mod:`excise.rates`.

Sources: docs/conventions.md, "Metrics" and "Intervals". Efron, Annals of Statistics 1979
(percentile interval); DER: Zhu et al., FT-SAM, ICCV 2023, equation 7. The sign of
ΔACC follows the paper: BackdoorBench's ``metric.py`` adds what it should subtract.

Every fraction is in [0, 1]; nothing here is in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from excise.errors import DataError, SpecError
from excise.rates import CONFIDENCE, Interval, Rate

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "BoolArray",
    "IntArray",
    "Interval",
    "PairedBootstrap",
    "Rate",
    "der",
    "paired_der",
    "paired_difference",
    "share",
]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
#: How often each column of outcomes is true: of shape (resamples,), or (1,) for the real images.
Totals = Mapping[str, FloatArray]

RESAMPLES = 10_000


def _der(asr0: FloatArray, asr: FloatArray, acc0: FloatArray, acc: FloatArray) -> FloatArray:
    gained = np.maximum(0.0, asr0 - asr)
    lost = np.maximum(0.0, acc0 - acc)
    rating: FloatArray = (gained - lost + 1) / 2
    return rating


def der(asr0: float, asr: float, acc0: float, acc: float) -> float:
    """Return the defense effectiveness rating [max(0, ASR₀−ASR) − max(0, ACC₀−ACC) + 1] / 2.

    Args:
        asr0: attack success rate before the defense, in [0, 1].
        asr: attack success rate after it.
        acc0: clean accuracy before it.
        acc: clean accuracy after it.

    Returns:
        A number in [0, 1]; a defense that changes nothing gets 0.5.

    Raises:
        DataError: a rate outside [0, 1], such as a percentage.
    """
    rates = np.array([asr0, asr, acc0, acc], dtype=np.float64)
    # Written so that NaN, which compares false with everything, is refused as well.
    if not np.all((rates >= 0) & (rates <= 1)):
        raise DataError(
            "rates in [0, 1]",
            got=f"ASR {asr0} → {asr}, ACC {acc0} → {acc}",
            remedy="Divide percentages by 100.",
        )
    return float(_der(*rates[:, None])[0])


def share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return ``part / whole`` elementwise, NaN where ``whole`` is 0."""
    nothing = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=nothing, where=whole > 0)
    return nothing


class PairedBootstrap:
    """Resamples of one set of images, from what is stored of each image.

    All that one image did (correct before, correct after, …) stays together, which is what makes
    the intervals *paired*. To draw n images with replacement is to draw how often each joint
    outcome occurs, which is one multinomial draw: the cost depends on the number of different
    outcomes, not on the number of images. Every interval of one object comes from the same
    resamples.

    Args:
        columns: named arrays of shape ``(n,)``, one truth value an image.
        rng: draws the resamples; equal generators give equal intervals.
        resamples: how many.

    Raises:
        DataError: no images, or columns of different lengths.
        SpecError: fewer than 100 resamples, too few for a percentile interval.
    """

    def __init__(
        self,
        columns: Mapping[str, BoolArray],
        rng: np.random.Generator,
        resamples: int = RESAMPLES,
    ) -> None:
        shapes = {name: np.shape(column) for name, column in columns.items()}
        if len(set(shapes.values())) != 1 or any(len(s) != 1 or s[0] == 0 for s in shapes.values()):
            raise DataError(
                "outcomes of the same images, at least one, as arrays of shape (n,)",
                got=", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none",
                remedy="Evaluate every network on the same test images.",
            )
        if resamples < 100:
            raise SpecError(
                "at least 100 resamples", got=str(resamples), remedy=f"{RESAMPLES} is usual."
            )
        table = np.stack(list(columns.values()), axis=1).astype(bool)
        n = len(table)
        codes = table @ (1 << np.arange(table.shape[1], dtype=np.int64))
        # One row a joint outcome that really occurs: 128 or more could, a few dozen do.
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        cells = table[first].astype(np.int64)
        drawn = rng.multinomial(n, counts / n, size=resamples) @ cells
        self._drawn = _named(columns, drawn)
        self._seen = _named(columns, counts[None, :] @ cells)

    def interval(self, figure: Callable[[Totals], FloatArray]) -> Interval:
        """Return ``figure`` of the real images, between percentiles of it over the resamples.

        Args:
            figure: how often each column is true → the figure, elementwise. Where it is NaN
                (:func:`share` of nothing) that resample does not count.
        """
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.nanpercentile(figure(self._drawn), [tail, 100 - tail])
        return Interval(float(figure(self._seen)[0]), float(low), float(high))


def _named(columns: Mapping[str, BoolArray], totals: IntArray) -> Totals:
    return {name: totals[:, i].astype(np.float64) for i, name in enumerate(columns)}


def paired_difference(
    before: BoolArray,
    after: BoolArray,
    rng: np.random.Generator,
    *,
    counted: BoolArray | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the rate of ``after`` minus the rate of ``before``, on the same images.

    Args:
        before: ``(n,)`` outcome of each image, for one network.
        after: ``(n,)`` outcome of the same images, for the other.
        rng: draws the resamples.
        counted: ``(n,)`` which images the two rates are over; all where it is None.
        resamples: how many.

    Raises:
        DataError: arrays of different lengths, or nothing counted.
        SpecError: fewer than 100 resamples.
    """
    counted = np.ones_like(before) if counted is None else counted
    _some(counted)
    boot = PairedBootstrap(
        {"before": _and(before, counted), "after": _and(after, counted), "counted": counted},
        rng,
        resamples,
    )
    return boot.interval(lambda t: share(t["after"] - t["before"], t["counted"]))


def paired_der(
    correct0: BoolArray,
    correct: BoolArray,
    success0: BoolArray,
    success: BoolArray,
    counted: BoolArray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the DER of a defense with its interval.

    Clean and triggered images are the same test images, so images are resampled, each with all
    four of its outcomes; those that an ASR does not count still count for accuracy.

    Args:
        correct0: ``(n,)`` clean image classified correctly before the defense.
        correct: ``(n,)`` the same after it.
        success0: ``(n,)`` triggered image classified as the attacker wants before it.
        success: ``(n,)`` the same after it.
        counted: ``(n,)`` images the ASR is over.
        rng: draws the resamples.
        resamples: how many.

    Raises:
        DataError: arrays of different lengths, or nothing counted.
        SpecError: fewer than 100 resamples.
    """
    _some(counted)
    boot = PairedBootstrap(
        {
            "all": np.ones_like(counted),
            "counted": counted,
            "correct0": correct0,
            "correct": correct,
            "success0": _and(success0, counted),
            "success": _and(success, counted),
        },
        rng,
        resamples,
    )
    return boot.interval(der_of_totals)


def der_of_totals(totals: Totals) -> FloatArray:
    """Return the DER from how often ``correct0``, ``correct``, ``success0``, … are true."""
    return _der(
        share(totals["success0"], totals["counted"]),
        share(totals["success"], totals["counted"]),
        share(totals["correct0"], totals["all"]),
        share(totals["correct"], totals["all"]),
    )


def _and(hits: BoolArray, counted: BoolArray) -> BoolArray:
    # Of different lengths they are left as they are: PairedBootstrap says what is wrong.
    return hits & counted if hits.shape == counted.shape else hits


def _some(counted: BoolArray) -> None:
    if not counted.any():
        raise DataError(
            "at least one counted image",
            got="none",
            remedy="Give test images of other classes than the target.",
        )
