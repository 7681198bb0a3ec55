"""Combined: one verdict of five tests, at a false-alarm rate counted on clean networks.

Tests and their sum for a class: :mod:`excise.inversion.suspects`.

Statistic           S = the largest sum over the classes
p                   the upper tail, from S on, of a gamma distribution fitted to those of clean
                    networks: for a network like them, the chance of a statistic as large
Alarm               where p ≤ ``alarm_rate``

The calibrating networks are clean, small, of known architectures; their statistics are in
``calibration.json``, written by ``benchmarks/scan_networks.py`` beside this file. None of them is
among those the scanner is measured on. Where an architecture, a size of images, or a number of
classes or of images lies outside of what they cover, the diagnosis says so.

No paper describes this method: it is ours. Measured: docs/scan.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import nn

from excise.errors import DataError
from excise.inversion.combined import recovered
from excise.inversion.outlying import LEAST
from excise.inversion.suspects import compare
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Diagnosis, LabelledImages, OnRound, ignore_round

__all__ = ["CombinedScan", "family", "threshold"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CombinedScan:
    """Five tests together; the alarm is calibrated on clean networks."""

    alarm_rate: Annotated[float, Field(ge=1e-3, lt=1)] = 0.01
    """Clean networks that raise an alarm, among networks like the calibrating ones."""
    effort: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Share of the usual rounds that each test gets; the calibration is of 1."""

    def scan(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Diagnosis:
        """Return the diagnosis, with the triggers of the most suspicious class; all images serve.

        Raises:
            DataError: fewer than four classes.
            ModelError: logits that are not finite.
        """
        if data.num_classes < LEAST:
            raise DataError(
                f"at least {LEAST} classes, to compare one with the others",
                got=f"{data.num_classes}",
                remedy="A network of fewer classes cannot be scanned so; repair it anyway.",
            )
        clean = [float(one["statistic"]) for one in calibration()]
        limit = threshold(clean, self.alarm_rate)
        everything = DefenderData(data.everything(), None, data.pool)
        suspects = compare(model, everything.train, rng, effort=self.effort, on_round=on_round)
        start = time.perf_counter()
        total = suspects.together()
        target = suspects.ranked()[0]
        triggers = recovered(
            suspects, model, everything, rng, (target,), effort=self.effort, on_round=on_round
        )
        statistic = total[target]
        backdoored = statistic >= limit
        as_large = sum(one >= statistic for one in clean)
        return Diagnosis(
            backdoored=backdoored,
            statistic=statistic,
            threshold=limit,
            targets=(target,) if backdoored else (),
            per_class=tuple(total),
            notes=(
                f"Of {len(clean)} clean networks {as_large or 'none'} had a statistic as large; "
                f"{_p_value(clean, statistic)}.",
                *suspects.remarks,
                *self._reservations(model, everything.train),
            ),
            seconds={**suspects.seconds, "recover": time.perf_counter() - start},
            tests={test: tuple(each) for test, each in suspects.by_test().items()},
            triggers=tuple(triggers),
        )

    def _reservations(self, model: nn.Module, images: LabelledImages) -> list[str]:
        here = {
            "classes": images.num_classes,
            "pixels a side": images.shape[-1],
            "images a class": int(images.labels.bincount().max()),
        }
        notes = []
        for what, number in here.items():
            seen = sorted({int(one[what.replace(" ", "_")]) for one in calibration()})
            if not seen[0] <= number <= seen[-1]:
                between = f"{seen[0]} to {seen[-1]}" if len(seen) > 1 else f"{seen[0]}"
                notes.append(
                    f"The false-alarm rate is calibrated for {between} {what}, not for {number}."
                )
        known = sorted({str(one["family"]) for one in calibration()})
        if family(model) not in known:
            notes.append(
                f"The false-alarm rate is not calibrated for this architecture, but on "
                f"{' and '.join(known)}."
            )
        if self.effort != 1:
            notes.append("The false-alarm rate is calibrated for effort 1, not for this one.")
        notes.append(
            "It sees one target class at most, and a backdoor only where one patch, pattern or "
            "warp, the same for all images, comes near its trigger."
        )
        return notes


def _p_value(clean: Sequence[float], statistic: float) -> str:
    # Beyond the networks it was fitted to a tail is a guess, and many digits of it are more so.
    least = 1 / (len(clean) + 1)
    p = float(_null(tuple(clean)).sf(statistic))
    return f"p = {p:.2g}" if p >= least else f"p < {least:.2g}"


def family(model: nn.Module) -> str:
    """Return a network's architecture without its options; its class where it has no name."""
    return str(getattr(model, "arch", type(model).__name__)).partition(",")[0]


def threshold(clean: Sequence[float], alarm_rate: float) -> float:
    """Return the statistic from which p ≤ ``alarm_rate``.

    Args:
        clean: the statistics of clean networks, two at least.
        alarm_rate: in (0, 1).
    """
    return float(_null(tuple(clean)).isf(alarm_rate))


@cache
def _null(clean: tuple[float, ...]) -> Any:
    """Return the gamma distribution of clean networks' statistics, which are never negative."""
    # A statistic of 0 has no logarithm, which the likelihood takes.
    shape, _, scale = stats.gamma.fit([max(one, 1e-3) for one in clean], floc=0)
    return stats.gamma(shape, scale=scale)


@cache
def calibration() -> list[dict[str, Any]]:
    """Return the calibrating networks: name, family, classes, statistic."""
    text = files("excise.detection").joinpath("calibration.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["networks"]
    return found
