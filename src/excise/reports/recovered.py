"""What was recovered, as the pages of a scan and of a repair show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from excise.reports import formats
from excise.reports.embedding import Embedded, embedded
from excise.reports.record import Rate, Recovered, Tried, TriedOn

__all__ = ["recovered", "strongest"]


def recovered(
    triggers: Sequence[Recovered], tried_on: TriedOn | None, files: Mapping[str, bytes]
) -> list[dict[str, Any]]:
    """Return each trigger's name, what it does in a sentence, and its pictures.

    Args:
        triggers: as the record holds them.
        tried_on: what their rates were counted on.
        files: PNG files by name; a missing one leaves a gap.
    """
    unseen = tried_on is not None and tried_on.unseen
    return [
        {
            "name": f"A {one.kind} "
            + (f"toward {one.class_}" if one.class_ is not None else "toward no class of its own"),
            "works": _works(one, unseen),
            "size": None
            if one.size is None
            else f"Mean change of an image: {one.size:.1f} pixels.",
            "cards": [_card(shown, one.residual_scale, files) for shown in one.shown],
        }
        for one in triggers
    ]


def strongest(triggers: Sequence[Recovered]) -> tuple[Rate, Rate | None] | None:
    """Return how often the one that works best works, and in the repaired network; None: unknown.

    The latter is None where nothing was repaired.
    """
    rates = [(one.rate, one.repaired) for one in triggers if one.rate is not None]
    return max(rates, key=lambda rate: rate[0].value, default=None)


def _works(one: Recovered, unseen: bool) -> str:
    if one.rate is None:
        return "There were no images of other classes to try it on."
    images = f"of {one.rate.n:,} {'unseen ' * unseen}images"
    if one.class_ is None:
        said = f"It changes the answer for {_rate(one.rate)} {images}"
    else:
        said = f"It sends {_rate(one.rate)} {images} of other classes there"
    said += "" if unseen else ", which it was found with"
    if one.class_ is not None and one.without is not None:
        said += f"; without it {formats.percent(one.without.value)} go there"
    said += "."
    if one.repaired is not None:
        said += f" In the repaired network it is {_rate(one.repaired)}."
    if one.explained is not None:
        said += f" It explains {formats.percent(min(1.0, max(0.0, one.explained)))} of what batch "
        said += "norms remember beyond clean images."
    return said


def _rate(rate: Rate) -> str:
    interval = formats.interval_text(rate.low, rate.high)
    return f"{formats.percent(rate.value)} (interval {interval})"


def _card(shown: Tried, scale: float, files: Mapping[str, bytes]) -> dict[str, Any]:
    parts: list[tuple[str, str, str]] = [
        ("clean", "as it is", f"An image of {shown.label}"),
        ("triggered", "with the trigger", f"An image of {shown.label} with the trigger found"),
        ("residual", f"change × {scale:.0f}", "What the trigger changed"),
    ]
    images: list[Embedded] = [
        embedded(caption, alt, files.get(getattr(shown, part) or "", b""))
        for part, caption, alt in parts
    ]
    return {
        "label": shown.label,
        "before": shown.before,
        "after": shown.after,
        "repaired": shown.repaired,
        "images": images,
    }
