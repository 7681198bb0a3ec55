"""A record of a run as one flat row: its axes as words, its figures as numbers.

A row always comes out. One whose status is ``damaged`` says why and holds nothing else; one of a
newer version says so. Nothing is taken from a record that is not of its type and range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from excise.reports.formats import clean
from excise.reports.record import VERSION

__all__ = ["COUNTS", "FIGURES", "NUMBERS", "PARTS", "WORDS", "flatten", "parse", "word"]

#: Which networks of a repair a record measures.
PARTS = ("before", "after", "floor")
FIGURES = ("acc", "asr", "ra", "target_recall")

#: The columns of a row beside its axes; no axis may take one of these names.
WORDS = (
    "path", "status", "key", "why", "created", "device", "revision", "excise", "verdict",
    "findings",
)  # fmt: skip
COUNTS = ("mtime_ns", "size", *(f"{part}.{figure}.n" for part in PARTS for figure in FIGURES))
NUMBERS = (
    *(f"{p}.{f}{end}" for p in PARTS for f in FIGURES for end in ("", ".low", ".high")),
    "der", "der.low", "der.high", "seconds", "seconds.total", "peak_memory_mib",
)  # fmt: skip
_TAKEN = {*WORDS, *COUNTS, *NUMBERS}

_AXIS = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_AXES, _AXIS_LENGTH, _WORD_LENGTH = 300, 80, 2000
_BIGGEST_COUNT = 2**53


class _DamageError(Exception):
    """What is wrong with a record, in a few words."""


def parse(content: bytes) -> Any:
    """Return the JSON in ``content``.

    Raises:
        ValueError: it is none, or holds a number that JSON has no word for.
        RecursionError: it is nested too deeply.
    """
    return json.loads(content, parse_constant=_refuse)


def flatten(record: Any, stem: str | None = None) -> dict[str, Any]:
    """Return the row of a record.

    Args:
        record: what its file holds; anything at all.
        stem: name of its file, which must be its key; None for a record that has no key yet.
    """
    try:
        return _flatten(record, stem)
    except _DamageError as damage:
        return {"status": "damaged", "key": stem, "why": clean(str(damage))}


def word(value: Any) -> str:
    """Return the value of an axis as text."""
    if isinstance(value, str):
        return " ".join(clean(value).split())
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    return clean(json.dumps(value, sort_keys=True, ensure_ascii=False))


def _flatten(record: Any, stem: str | None) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise _DamageError(f"a {type(record).__name__} instead of a record")
    version = record.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _DamageError("it states no version")
    if version > VERSION:
        return {"status": "newer", "key": stem, "why": f"version {version}"}
    if stem is None:
        status, key = "done" if record.get("kind") == "repair" else None, None
        run = record.get("run") or _run_of_repair(record.get("spec"))
    else:
        status, key, run = record.get("status"), record.get("key"), record.get("run")
    if key != stem or status not in ("done", "failed"):
        raise _DamageError("it is not the record of its name")
    if not isinstance(run, Mapping):
        raise _DamageError("it does not say which run it is of")
    axes = dict(_axes(run))
    if len(axes) > _AXES:
        raise _DamageError(f"more than {_AXES} settings")
    environment = _table(record, "environment")
    row: dict[str, Any] = {
        "status": status,
        "key": stem,
        "created": _text(record.get("created")),
        **{name: _text(environment.get(name)) for name in ("device", "revision", "excise")},
    }
    if status == "failed":
        return {**axes, **row, "why": _text(record.get("error")) or "it does not say why"}
    for part in PARTS:
        row |= dict(_figures(record, part))
    if row.get("after.acc") is None:
        raise _DamageError("it holds no accuracy of the repaired network")
    row |= _der(_table(record, "comparison").get("der"), row)
    seconds = _table(record, "seconds")
    row["seconds"] = _amount(seconds.get("repair"))
    row["seconds.total"] = _amount(seconds.get("total"))
    row["peak_memory_mib"] = _amount(record.get("peak_memory_mib"))
    row["verdict"] = _text(_table(record, "verdict").get("status"))
    row["findings"] = _findings(record.get("checks"))
    return {**axes, **row}


def _run_of_repair(spec: Any) -> Any:
    """Return the axes of a repair that no sweep started, from its own spec."""
    if not isinstance(spec, Mapping):
        return None
    model = spec.get("model")
    model = model if isinstance(model, Mapping) else {"arch": model}
    data = spec.get("data")
    source = data.get("source") if isinstance(data, Mapping) else data
    run = {
        "data": spec.get("source") or source,
        "model": model.get("arch"),
        "attack": model.get("attack"),
        "defense": spec.get("defense"),
        "spc": spec.get("spc"),
        "seed": spec.get("seed"),
        # The seed is the repair's alone, also where a record does not say the victim's. And seeds
        # are not enough: without its hash, another network of one name would pass for this one.
        "victim_seed": model.get("victim_seed"),
        "victim": model.get("weights"),
    }
    kept = ("spc", "victim_seed")
    return {key: value for key, value in run.items() if value is not None or key in kept}


def _axes(settings: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting of a run; a method's name stands for the method itself."""
    for key, value in settings.items():
        name = above[:-1] if above and key == "name" else f"{above}{key}"
        if len(name) > _AXIS_LENGTH or not _AXIS.fullmatch(name) or name in _TAKEN:
            raise _DamageError(f"a setting called {name[:60]!r}")
        if isinstance(value, Mapping):
            if name.count(".") > 8:
                raise _DamageError(f"settings nested too deeply at {name[:60]!r}")
            yield from _axes(value, f"{name}.")
            continue
        text = "all" if name == "spc" and value is None else word(value)
        if len(text) > _WORD_LENGTH:
            raise _DamageError(f"a value of {len(text):,} characters at {name!r}")
        yield name, text


def _figures(record: Mapping[str, Any], part: str) -> Iterator[tuple[str, Any]]:
    measured = _table(record, part)
    for figure in FIGURES:
        rate = measured.get(figure)
        if rate is None:
            continue
        if not isinstance(rate, Mapping):
            raise _DamageError(f"{part}.{figure} is no rate")
        value = rate.get("value")
        if value is None:  # of no images
            continue
        for end, number in (("", value), (".low", rate.get("low")), (".high", rate.get("high"))):
            yield f"{part}.{figure}{end}", _fraction(number, f"{part}.{figure}{end}")
        n = rate.get("n")
        if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= _BIGGEST_COUNT:
            raise _DamageError(f"{part}.{figure}.n is no number of images")
        yield f"{part}.{figure}.n", n


def _der(stated: Any, row: Mapping[str, Any]) -> dict[str, float]:
    """Return DER with its interval, or as the other figures give it, or nothing."""
    if isinstance(stated, Mapping):
        ends = {"der": "value", "der.low": "low", "der.high": "high"}
        return {n: _fraction(stated.get(end), f"comparison.der.{end}") for n, end in ends.items()}
    before = [row.get(f"before.{figure}") for figure in ("acc", "asr")]
    after = [row.get(f"after.{figure}") for figure in ("acc", "asr")]
    (acc0, asr0), (acc, asr) = before, after
    if acc0 is None or asr0 is None or acc is None or asr is None:
        return {}
    return {"der": (max(0.0, asr0 - asr) - max(0.0, acc0 - acc) + 1) / 2}


def _findings(checks: Any) -> str:
    """Return the names of the checks that found something, separated by commas."""
    if not isinstance(checks, list):
        return ""
    found = [
        _text(check.get("name")) or "?"
        for check in checks[:100]
        if isinstance(check, Mapping) and check.get("level") in ("problem", "warning")
    ]
    return ", ".join(sorted(set(found)))


def _table(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(value: Any, most: int = 300) -> str | None:
    return clean(value)[:most] if isinstance(value, str) else None


def _fraction(value: Any, place: str) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise _DamageError(f"{place} is no fraction")
    return float(value)


def _amount(value: Any) -> float | None:
    """Return an amount of time or memory; None for what cannot be one."""
    return float(value) if _is_number(value) and 0 <= value <= 1e12 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
