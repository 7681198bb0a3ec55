"""Numbers and names as a person reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "change_text",
    "clean",
    "duration",
    "interval_text",
    "memory",
    "percent",
    "short_list",
    "signed",
    "value_text",
    "when",
]

# Control characters (a terminal would obey them), lone surrogates (UTF-8 has no bytes for them)
# and the marks that reverse the reading direction of what follows.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Return ``text`` with every character that could act instead of being read replaced."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def _number(value: float) -> str:
    rounded = round(100 * value, 1) + 0.0  # adding 0.0 turns -0.0 into 0.0
    return f"{rounded:.1f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """Return a fraction as ``93.0%``."""
    return f"{_number(value)}%"


def signed(value: float) -> str:
    """Return a difference of fractions as ``+1.2`` or ``−0.4``, in percentage points."""
    text = _number(value)
    return text if text == "0.0" or value < 0 else f"+{text}"


def interval_text(low: float, high: float) -> str:
    """Return an interval of fractions as ``92.1–93.8``."""
    return f"{_number(low)}\N{EN DASH}{_number(high)}"


def value_text(value: float, low: float, high: float) -> str:
    """Return a fraction with its interval as ``93.0 (92.1–93.8)``."""
    return f"{_number(value)} ({interval_text(low, high)})"


def change_text(value: float, low: float | None, high: float | None) -> str:
    """Return a difference with its interval as ``−0.7 (−1.9 to +0.4)``."""
    if low is None or high is None:
        return signed(value)
    return f"{signed(value)} ({signed(low)} to {signed(high)})"


def duration(seconds: float) -> str:
    """Return a time span in the two largest units that matter."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def memory(mib: float) -> str:
    """Return an amount of memory in MiB or GiB."""
    return f"{mib:,.0f} MiB" if mib < 1024 else f"{mib / 1024:,.1f} GiB"


def when(text: str) -> str:
    """Return an ISO time as ``2026-11-22 10:00 UTC``, anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def short_list(values: Sequence[Any], most: int = 24) -> str:
    """Return values separated by commas; of a long list only its beginning and its length."""
    shown = ", ".join(str(v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, … ({len(values):,} in all)"
