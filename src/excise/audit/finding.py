"""What an audit found: figures with their intervals, what they were held against, a sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import nn

from excise.audit.judging import Steps
from excise.rates import Interval, Rate
from excise.seeding import Rng
from excise.types import DefenderData, OnRound, RecoveredTrigger, ignore_round

__all__ = ["Audit", "Figure", "Finding", "nothing", "said"]

Figure = Rate | Interval | Steps


@dataclass(frozen=True)
class Finding:
    """What one attack on a repaired network came to.

    Args:
        name: of the audit, in kebab case.
        passed: whether the repair withstood it; None where that cannot be told.
        sentence: what happened, in figures, for a person.
        values: each figure by what it is of, with its 95% interval.
        threshold: the rate that the decisive one had to exceed, with all of its interval, to fail.
        seconds: how long it took.
    """

    name: str
    passed: bool | None
    sentence: str
    values: Mapping[str, Figure] = field(default_factory=dict)
    threshold: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values, ready for a record."""
        return {
            "name": self.name,
            "passed": self.passed,
            "sentence": self.sentence,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "threshold": self.threshold,
            "seconds": self.seconds,
        }


class Audit(Protocol):
    """An attack on a repaired network; ``name`` is what its finding is called."""

    name: ClassVar[str]

    def audit(
        self,
        given: nn.Module,
        repaired: nn.Module,
        data: DefenderData,
        rng: Rng,
        *,
        known: RecoveredTrigger | None = None,
        on_round: OnRound = ignore_round,
    ) -> Finding:
        """Return what it found; both networks and the images come back as they were.

        Args:
            given: the network before its repair.
            repaired: after it.
            data: the training images are attacked with, the validation images tell the outcome.
            rng: draws whatever is random; equal generators give equal findings.
            known: the trigger of the given network; searched for where it is None.
            on_round: called now and then with a row of plain values.

        Raises:
            DataError: there are no validation images.
            ModelError: the networks do not tell the same classes apart.
        """
        ...


def nothing(name: str, start: float, told: bool = False) -> Finding:
    """Return the finding of an audit that has no trigger to attack with.

    Args:
        name: of the audit.
        start: ``time.perf_counter()`` when it began.
        told: whether there was one that does not work on the given network.
    """
    why = (
        "the given trigger steers no single class of the given network"
        if told
        else "no trigger that works was recovered from the given network"
    )
    sentence = f"Nothing to audit with: {why}."
    return Finding(name, None, sentence, seconds=time.perf_counter() - start)


def said(rate: Rate) -> str:
    """Return a rate as ``12.5% (2.2% to 47.1%) of 8 images``."""
    value, low, high = (f"{100 * v:.1f}%" for v in (rate.value or 0, rate.low, rate.high))
    return f"{value} ({low} to {high}) of {rate.n} image{'' if rate.n == 1 else 's'}"
