"""The page of a network's scan: is there a backdoor, where does it lead, what does it look like?

A pure function of the record that ``excise scan`` writes. As on the page of a repair, every string
is somebody else's and is escaped, and the page's own policy forbids requests and scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from excise.reports import formats
from excise.reports.embedding import data_uri
from excise.reports.page import environment, pretty
from excise.reports.record import Part, Recovered, TriedOn, record_json, versioned
from excise.reports.recovered import recovered, strongest

__all__ = ["render_network_scan"]

_VERSION = 1
_REMEDY = "Run `excise scan` again."
#: Classes in the table; the record has the rest.
_ROWS = 200

#: status -> (word, icon)
_STATUS = {
    "found": ("Backdoor likely", "bad"),
    "nothing": ("No class stands out", "good"),
    "void": ("Cannot be told", "unknown"),
}
_TESTS = {
    "margin": "how sure of the class random images can be made",
    "patch": "how small a patch sends images to the class",
    "pattern": "how faint a pattern over the image sends images to the class",
    "smooth": "how faint a smooth pattern does",
    "memory": "how many images a trigger that batch norms remember sends to the class",
}

Figure = Annotated[float, Field(allow_inf_nan=False)]


class _Verdict(Part):
    status: str
    sentence: str


class _Class(Part):
    name: str
    suspicion: Figure
    tests: dict[str, Figure] = Field(default_factory=dict)


class _Scan(Part):
    """The record of a scan."""

    version: int
    kind: Literal["network-scan"]
    verdict: _Verdict
    statistic: Figure
    threshold: Figure
    targets: list[str]
    classes: Annotated[list[_Class], Field(min_length=1)]
    triggers: list[Recovered]
    tried_on: TriedOn
    notes: list[str] = Field(default_factory=list)
    spec: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    command: str | None = None
    created: str | None = None


def render_network_scan(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page of a scan: HTML with its style and its pictures inside.

    Args:
        record: the record of the scan.
        pictures: PNG files by the names the record calls them; a missing one leaves a gap.

    Raises:
        DataError: the record cannot be read.
    """
    scan = versioned(_Scan, record, "the record of a network's scan", _REMEDY, version=_VERSION)
    return (
        environment()
        .get_template("network_scan.html.j2")
        .render(
            **_view(scan, pictures),
            download=data_uri(record_json(record).encode(), "application/json"),
            pretty=pretty(dict(record)),
        )
    )


def _view(scan: _Scan, files: Mapping[str, bytes]) -> dict[str, Any]:
    word, icon = _STATUS.get(scan.verdict.status, ("No verdict", "unknown"))
    ranked = sorted(scan.classes, key=lambda one: -one.suspicion)
    tests = list(ranked[0].tests)
    # MM-BD decides by a chance and gives each class its margin: no line among them is the alarm.
    same_unit = abs(scan.statistic - ranked[0].suspicion) <= 1e-6 * max(1.0, abs(scan.statistic))
    top = max(1e-9, ranked[0].suspicion, scan.threshold if same_unit else 0.0)
    return {
        "title": f"{word} · Excise network scan",
        "word": word,
        "icon": icon,
        "sentence": scan.verdict.sentence,
        "notes": scan.notes,
        "facts": _facts(scan),
        "tiles": _tiles(scan, ranked),
        "tests": tests,
        "meanings": [(test, _TESTS[test]) for test in tests if test in _TESTS],
        "rows": [
            {
                "name": one.name,
                "suspicion": f"{one.suspicion:.2f}",
                "share": f"{100 * max(0.0, one.suspicion) / top:.1f}",
                "tests": [f"{one.tests.get(test, 0.0):.2f}" for test in tests],
                "suspect": one.name in scan.targets,
            }
            for one in ranked[:_ROWS]
        ],
        "rows_more": max(0, len(ranked) - _ROWS),
        "mark": f"{100 * scan.threshold / top:.1f}" if same_unit else None,
        "threshold": f"{scan.threshold:.2f}",
        "recovered_how": "Changes that lead to the most suspicious class: the smallest ones found, "
        "or those that best explain what the network’s batch norms remember of its training "
        "images.",
        "triggers": recovered(scan.triggers, scan.tried_on, files),
        "run": _run(scan),
        "command": scan.command,
    }


def _tiles(scan: _Scan, ranked: list[_Class]) -> list[dict[str, str]]:
    tiles = [
        {
            "name": "Statistic",
            "value": f"{scan.statistic:.2f}",
            "hint": f"alarm from {scan.threshold:.2f} on",
        },
        {
            "name": "Most suspicious class",
            "value": ranked[0].name,
            "hint": f"next: {ranked[1].name}, {ranked[1].suspicion:.2f}"
            if len(ranked) > 1
            else "the only one",
        },
    ]
    if best := strongest(scan.triggers):
        rate, _ = best
        tiles.append({
            "name": "Best trigger found",
            "value": formats.percent(rate.value),
            "hint": f"of {rate.n:,} images of other classes go to the class",
        })  # fmt: skip
    return tiles


def _facts(scan: _Scan) -> list[tuple[str, str]]:
    model = scan.spec.get("model")
    model = model if isinstance(model, Mapping) else {}
    data = scan.spec.get("data")
    counts = data.get("per_class") if isinstance(data, Mapping) else None
    total = sum(counts) if isinstance(counts, list) else None
    facts = [
        ("Network", model.get("name")),
        ("Architecture", model.get("arch")),
        ("Images", scan.spec.get("source")),
        ("Clean images used", None if total is None else f"{total:,}"),
        ("Made", formats.when(scan.created) if scan.created else None),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _run(scan: _Scan) -> list[tuple[str, str]]:
    settings = scan.spec.get("scanner")
    settings = settings if isinstance(settings, Mapping) else {}
    said = [f"{k.replace('_', ' ')} {v}" for k, v in settings.items() if k != "name"]
    lines = [
        ("Scanner", settings.get("name")),
        ("Settings", " · ".join(said)),
        ("Seed", scan.spec.get("seed")),
        ("Time", ", ".join(f"{k} {formats.duration(s)}" for k, s in scan.seconds.items())),
        ("Made with", ", ".join(f"{k} {v}" for k, v in scan.environment.items() if v is not None)),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]
