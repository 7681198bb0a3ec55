"""Whether a rate, or a curve of rates over the steps of a lesson, speaks against a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from excise.rates import Rate

__all__ = ["DOUBT", "LEVELS", "Steps", "decided", "fastest", "judged", "steps_to"]

#: Rates whose upper end lies under this are low enough to pass: the trigger is far from reliable.
DOUBT = 0.5
#: Of a lesson it is asked when the trigger steers so many of the images.
LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Steps:
    """After how many steps a curve passed a level; None where it had not when it ended.

    Args:
        value: the first step whose rate is at the level or above it.
        low: the first whose interval's upper end is: the level may have been reached then.
        high: the first whose interval's lower end is: it has been reached then.
        most: how many steps there were.
    """

    value: int | None
    low: int | None
    high: int | None
    most: int

    def to_json(self) -> dict[str, int | None]:
        """Return ``{"value", "low", "high", "most"}``, ready for a record."""
        return {"value": self.value, "low": self.low, "high": self.high, "most": self.most}


def steps_to(level: float, curve: Sequence[Rate]) -> Steps:
    """Return when a curve of rates, from before the first step, first reaches ``level``."""

    def first(values: list[float]) -> int | None:
        return next((step for step, value in enumerate(values) if value >= level), None)

    return Steps(
        value=first([rate.value or 0.0 for rate in curve]),
        low=first([rate.high for rate in curve]),
        high=first([rate.low for rate in curve]),
        most=len(curve) - 1,
    )


def fastest(each: Sequence[Steps]) -> Steps:
    """Return the one that passed its level first; the first of equals."""
    return min(each, key=lambda steps: steps.most + 1 if steps.value is None else steps.value)


def judged(attack: Rate, beside: float, natural: float) -> bool | None:
    """Return whether a repair withstood an attack that reached this rate.

    It did not where the whole interval lies above ``beside``. It did where the upper end lies under
    :data:`DOUBT`, which fewer than 4 images cannot show, or where the rate is no higher than
    ``natural`` although a rate of 1 would have failed. Else it cannot be told.

    Args:
        attack: how many held-back images reached the class.
        beside: what its lower end has to exceed to fail, such as a control's upper end.
        natural: what would have reached the class anyhow, such as a control's rate.
    """
    if attack.low > beside:
        return False
    if attack.value is None or Rate(0, attack.n).high >= DOUBT:
        return None
    if attack.high < DOUBT:
        return True
    # Beside a control that reaches nearly all no attack could fail, and none withstands.
    could_fail = Rate(attack.n, attack.n).low > beside
    return True if could_fail and attack.value <= natural else None


def decided(
    old: Sequence[Rate], controls: Sequence[Sequence[Rate]]
) -> tuple[bool | None, int, Rate, Rate]:
    """Return the verdict, its step, and there the old trigger's rate and the best control's.

    The step is the one at which the old trigger steers half of the images, or nine of ten if only
    that one tells; the last one where it steers fewer.
    """
    reached = [steps_to(level, old).value for level in LEVELS]
    looked_at = []
    for step in [s for s in reached if s is not None] or [len(old) - 1]:
        best = max((c[min(step, len(c) - 1)] for c in controls), key=lambda rate: rate.value or 0.0)
        looked_at.append((judged(old[step], best.high, best.value or 0.0), step, old[step], best))
    return next((one for one in looked_at if one[0] is False), looked_at[0])
