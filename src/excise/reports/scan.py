"""The page of a scan: which pictures were flagged, and what in their spectra speaks for it.

A pure function of the record that ``excise scan-images`` writes. As on the page of a repair, every
string is somebody else's and is escaped, and the page's own policy forbids requests and scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from excise.reports import formats
from excise.reports.embedding import Embedded, data_uri, embedded
from excise.reports.page import environment, pretty
from excise.reports.record import Count, Fraction, Part, Rate, record_json, versioned

__all__ = ["render_scan"]

_VERSION = 1
_REMEDY = "Run `excise scan-images` again."
#: Rows of the table of all pictures; the record has the rest.
_ROWS = 500

#: status -> (word, icon)
_STATUS = {
    "nothing": ("Nothing flagged", "good"),
    "as-clean": ("Flagged, perhaps by chance", "warning"),
    "more": ("Flagged", "bad"),
    "unreliable": ("Detector not reliable", "unknown"),
}


class _Verdict(Part):
    status: str
    sentence: str


class _Judged(Part):
    name: str
    suspicion: Fraction
    flagged: bool


class _Shown(_Judged):
    picture: str
    spectrum: str
    excess: str
    above_clean: Fraction


class _CleanSpectrum(Part):
    picture: str
    images: Count
    strongest: float
    scale: str


class _Clean(Part):
    learned_from: Count
    held_back: Count


class _Scan(Part):
    """The record of a scan."""

    version: int
    kind: Literal["image-scan"]
    verdict: _Verdict
    flagged: Rate
    false_alarms: Rate
    clean: _Clean
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    images: list[_Judged]
    shown: list[_Shown]
    clean_spectrum: _CleanSpectrum
    notes: list[str] = Field(default_factory=list)
    unreadable: list[str] = Field(default_factory=list)
    unreadable_clean: list[str] = Field(default_factory=list)
    spec: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    command: str | None = None
    created: str | None = None


def render_scan(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page of a scan: HTML with its style and its pictures inside.

    Args:
        record: the record of the scan.
        pictures: PNG files by the names the record calls them; a missing one leaves a gap.

    Raises:
        DataError: the record cannot be read.
    """
    scan = versioned(_Scan, record, "the record of a scan", _REMEDY, version=_VERSION)
    return (
        environment()
        .get_template("scan.html.j2")
        .render(
            **_view(scan, pictures),
            download=data_uri(record_json(record).encode(), "application/json"),
            pretty=pretty({k: v for k, v in record.items() if k != "images"}),
        )
    )


@dataclass(frozen=True)
class _Card:
    """One picture beside its spectrum."""

    name: str
    suspicion: str
    icon: str
    why: str
    images: list[Embedded]


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    hint: str


def _view(scan: _Scan, files: Mapping[str, bytes]) -> dict[str, Any]:
    word, icon = _STATUS.get(scan.verdict.status, ("No verdict", "unknown"))
    flagged = [_card(shown, files) for shown in scan.shown if shown.flagged]
    ranked = sorted(scan.images, key=lambda image: -image.suspicion)
    clean = scan.clean_spectrum
    return {
        "title": f"{word}: {scan.flagged.n:,} pictures · Excise image scan",
        "word": word,
        "icon": icon,
        "sentence": scan.verdict.sentence,
        "notes": scan.notes,
        "facts": _facts(scan),
        "tiles": _tiles(scan),
        "clean": embedded(
            f"mean of {clean.images:,} clean pictures",
            "Mean spectrum of clean pictures: bright at the top left, dark at the bottom right",
            files.get(clean.picture, b""),
        ),
        "scale": embedded("", "Color scale from dark to bright", files.get(clean.scale, b"")),
        "strongest": f"{clean.strongest:,.0f}",
        "flagged": flagged,
        "flagged_more": scan.flagged.count - len(flagged),
        "others": [_card(shown, files) for shown in scan.shown if not shown.flagged],
        "rows": [
            (image.name, f"{image.suspicion:.3f}", "flagged" if image.flagged else "")
            for image in ranked[:_ROWS]
        ],
        "rows_more": max(0, len(ranked) - _ROWS),
        "unreadable": scan.unreadable,
        "unreadable_clean": len(scan.unreadable_clean),
        "run": _run(scan),
        "command": scan.command,
        "smooth": bool(_at(scan.spec, "detector", "smooth_epochs")),
    }


def _card(shown: _Shown, files: Mapping[str, bytes]) -> _Card:
    why = f"more high-frequency energy than {shown.above_clean:.0%} of clean pictures"
    alts = (
        ("picture", "the picture", f"The picture {shown.name}"),
        ("spectrum", "its spectrum", f"Spectrum of {shown.name}"),
        ("excess", "above clean", f"Where the spectrum of {shown.name} exceeds the clean mean"),
    )
    return _Card(
        name=shown.name,
        suspicion=f"{shown.suspicion:.3f}",
        icon="bad" if shown.flagged else "same",
        why=why,
        images=[
            embedded(caption, alt, files.get(getattr(shown, part), b""))
            for part, caption, alt in alts
        ],
    )


def _tiles(scan: _Scan) -> list[_Tile]:
    alarms = scan.false_alarms
    return [
        _Tile(
            "Flagged",
            f"{scan.flagged.count:,}",
            f"of {scan.flagged.n:,} pictures: {formats.percent(scan.flagged.value)}, interval "
            f"{formats.interval_text(scan.flagged.low, scan.flagged.high)}",
        ),
        _Tile(
            "False alarms",
            formats.percent(alarms.value),
            f"{alarms.count:,} of {alarms.n:,} clean pictures it did not learn from, interval "
            f"{formats.interval_text(alarms.low, alarms.high)}",
        ),
        _Tile(
            "False alarms to expect",
            _expected(alarms, scan.flagged.n),
            f"of {scan.flagged.n:,} pictures like the clean ones",
        ),
    ]


def _expected(alarms: Rate, n: int) -> str:
    low, high = round(alarms.low * n), round(alarms.high * n)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _facts(scan: _Scan) -> list[tuple[str, str]]:
    c, h, w = scan.shape
    facts = [
        ("Pictures", scan.spec.get("source")),
        ("Clean pictures", scan.spec.get("clean")),
        ("Size", f"{h} × {w} pixels, {'gray' if c == 1 else 'color'}"),
        ("Detector", _at(scan.spec, "detector", "name")),
        ("Made", formats.when(scan.created) if scan.created else None),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _run(scan: _Scan) -> list[tuple[str, str]]:
    settings = scan.spec.get("detector")
    settings = settings if isinstance(settings, Mapping) else {}
    said = [f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if k != "name"]
    lines = [
        ("Learned from", f"{scan.clean.learned_from:,} clean pictures"),
        ("Held back", f"{scan.clean.held_back:,} clean pictures"),
        ("Settings", " · ".join(said)),
        ("Seed", scan.spec.get("seed")),
        ("Time", ", ".join(f"{k} {formats.duration(s)}" for k, s in scan.seconds.items())),
        ("Made with", ", ".join(f"{k} {v}" for k, v in scan.environment.items() if v is not None)),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _at(settings: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None  # type: ignore[assignment]
    return settings
