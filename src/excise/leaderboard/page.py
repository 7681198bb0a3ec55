"""The leaderboard's page: one HTML file that sorts, filters and draws, and requests nothing.

Runs travel as columns of small numbers, not as elements: the browser shows fifty of them at a time.
Every string of a record is somebody else's: Jinja escapes it, the page's script writes it as text
only, and the page's policy allows that one script, by its hash, and no request.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from excise.leaderboard.instances import MEASURES, instances
from excise.leaderboard.published import beside
from excise.leaderboard.ranking import Ranking
from excise.leaderboard.runs import Runs
from excise.leaderboard.table import method, plain_lines, plain_sentences
from excise.reports import formats

__all__ = ["render_leaderboard"]

#: Fractions travel as whole numbers up to this; one more means "not measured".
_WHOLE = 65534
_FRACTIONS = (
    "der", "der.low", "der.high", "after.acc", "after.asr", "after.ra", "after.target_recall",
    "before.acc", "before.asr", "before.ra", "floor.acc", "floor.asr", "floor.ra",
)  # fmt: skip
_AMOUNTS = ("seconds", "peak_memory_mib")
_WORDS = ("status", "verdict", "findings", "device", "revision", "created", "why")
_COUNTS = ("after.acc.n", "after.asr.n")
_KEY = re.compile(r"records/([0-9a-f]{2})/(\1[0-9a-f]{22})\.json")
#: A page this many folders away from its store has no links: they would name the folders between.
_NEAR = 2


def render_leaderboard(ranking: Ranking, runs: Runs, folder: Path) -> str:
    """Return the page of a ranking.

    Args:
        ranking: what the page opens with.
        runs: the runs it was made from; the page ranks any choice of them by itself.
        folder: where the page will lie; if the store is near, every run links to its record.
    """
    script = files("excise.leaderboard").joinpath("templates/leaderboard.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(_data(ranking, runs, folder), allow_nan=False, separators=(",", ":"))
    reported = beside(runs)
    lonely = sorted(
        set(runs.axes.get("defense", ())) - {row.reported.defense for row in reported} - {"none"}
    )
    page: str = (
        _environment()
        .get_template("leaderboard.html.j2")
        .render(
            facts=_facts(ranking, runs),
            notes=plain_sentences(ranking, runs)[1:-1],
            method=method(ranking),
            by=" · ".join(ranking.by),
            orders=[
                (f"{worst}{m.name}", f"{'worst-case ' if worst else ''}{m.label}")
                for worst in ("", "worst-")
                for m in MEASURES
            ],
            order=ranking.order,
            constants=_constants(runs),
            lines=plain_lines(ranking),
            reported=reported,
            lonely=[name for name in lonely if "defense" in ranking.by],
            damaged=runs.damaged[:50],
            has_spc=len(runs.axes.get("spc", ())) > 1,
            digest=digest,
            script=Markup(script),
            data=Markup(_inert(data)),
        )
    )
    return page


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("excise.leaderboard"), PackageLoader("excise.reports")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: (
            v if isinstance(v, Markup) or not isinstance(v, str) else formats.clean(v)
        ),
    )
    environment.filters.update(percent=lambda v: "—" if v is None else formats.percent(v)[:-1])
    return environment


def _finalize(value: Any) -> Any:
    """Clean every string of a record on its way into the page; markup made here passes."""
    ours = isinstance(value, Markup) or not isinstance(value, str)
    return value if ours else formats.clean(value)


def _facts(ranking: Ranking, runs: Runs) -> list[tuple[str, str]]:
    store = runs.store.resolve().name
    facts = [
        ("Store", store),
        ("Finished runs", f"{runs.done:,}"),
        ("Failed runs", f"{runs.failed:,}"),
        ("Victims", f"{ranking.victims:,}"),
        ("Data", ", ".join(runs.axes.get("data", ())[:8])),
        ("Excise", version("excise")),
    ]
    if runs.conditions:
        facts.append(("Only", " and ".join(runs.conditions)))
    return [(name, value) for name, value in facts if value]


def _constants(runs: Runs) -> list[tuple[str, str]]:
    """Return the settings that are the same in all runs that have them."""
    return [
        (name, values[0])
        for name, values in runs.axes.items()
        if len(values) == 1 and values[0] != "null" and name not in runs.varying
    ]


def _data(ranking: Ranking, runs: Runs, folder: Path) -> dict[str, Any]:
    numbered = instances(runs, ranking.by)
    table = runs.table
    axes = {name: _coded(table.column(name)) for name in runs.varying}
    words = {name: _coded(table.column(name)) for name in _WORDS}
    counts = {name: _coded(table.column(name).cast(pa.string())) for name in _COUNTS}
    return {
        "by": list(ranking.by),
        "order": ranking.order,
        "coverage": ranking.coverage,
        "rows": table.num_rows,
        "whole": _WHOLE,
        "measures": [{"name": m.name, "label": m.label, "more": m.more} for m in MEASURES],
        "entrants": list(numbered.names),
        "numbers": {
            name: _packed(getattr(numbered, name))
            for name in ("entrant", "instance", "cell", "victim")
        },
        "axes": axes,
        "words": words,
        "counts": counts,
        "fractions": {name: _packed(_whole(table.column(name))) for name in _FRACTIONS},
        "amounts": {
            name: _base64(table.column(name).to_numpy(zero_copy_only=False).astype("<f4"))
            for name in _AMOUNTS
        },
        "records": _records(table.column("path").to_pylist(), runs.store, folder),
        "ranking": {
            "standings": [asdict(s) for s in ranking.standings],
            "references": ranking.references,
            "instances": ranking.instances,
            "shared": ranking.shared,
            "victims": ranking.victims,
            "cells": ranking.cells,
            "resamples": ranking.resamples,
        },
    }


def _whole(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    values = column.to_numpy(zero_copy_only=False).astype(float)
    known = np.isfinite(values)
    scaled = np.full(len(values), _WHOLE + 1, np.int64)
    scaled[known] = np.round(values[known] * _WHOLE).astype(np.int64)
    return scaled


def _coded(column: pa.ChunkedArray) -> dict[str, Any]:
    """Return a column of words as the words and, for each run, which; the first is none."""
    codes = column.combine_chunks().dictionary_encode()
    found = [formats.clean(word) for word in codes.dictionary.to_pylist()]
    indices = codes.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return {"values": [None, *found], "codes": _packed(indices)}


def _packed(numbers: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return whole numbers from 0 in as few bytes each as they need, as base64."""
    most = int(numbers.max()) if len(numbers) else 0
    size = 1 if most < 2**8 else 2 if most < 2**16 else 4
    return {"bytes": size, "base64": _base64(numbers.astype(f"<u{size}"))}


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _records(paths: list[str], store: Path, folder: Path) -> dict[str, Any]:
    """Return where the records lie: keys alone where the path follows from the key."""
    base = Path(os.path.relpath(store.resolve(), folder.resolve())).as_posix()
    near = base.split("/").count("..") <= _NEAR
    keys = [match.group(2) if (match := _KEY.fullmatch(path)) else None for path in paths]
    found: dict[str, Any] = {"base": base if near else None}
    if all(keys):
        found["keys"] = base64.b64encode(bytes.fromhex("".join(map(str, keys)))).decode()
    else:
        found["paths"] = [formats.clean(path) for path in paths]
    return found


def _inert(raw: str) -> str:
    """Escape JSON so that no tag or comment can begin inside a script element."""
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
