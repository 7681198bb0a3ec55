"""Figures as people read them; the one place where fractions become percent."""

from __future__ import annotations

from excise.evaluation.metrics import Interval, Rate


def percent(fraction: float) -> str:
    """Return 0.123 as ``12.3%``."""
    return f"{100 * fraction:.1f}%"


def rate(of: Rate) -> str:
    """Return the rate with its interval and its counts."""
    if of.value is None:
        return "unknown (no images)"
    return f"{percent(of.value)} ({percent(of.low)} to {percent(of.high)}, {of.count} of {of.n})"


def points(of: Interval) -> str:
    """Return a difference without sign, in points of a hundred, with its interval."""
    return f"{100 * of.value:.1f} points ({100 * of.low:.1f} to {100 * of.high:.1f})"


def signed(difference: float) -> str:
    """Return a difference in points of a hundred, with a plus or a true minus."""
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    value = round(100 * difference, 1) + 0.0
    return "±0.0" if value == 0 else f"{'+' if value > 0 else '−'}{abs(value):.1f}"


def change(of: Interval) -> str:
    """Return a change in points of a hundred with its 95 % interval."""
    low, high = signed(of.low), signed(of.high)
    return f"{signed(of.value)} points, 95% interval {low} to {high}"
