"""A sweep's file: a TOML table of what all runs share, and of the axes along which they differ.

::

    [base]                                   # what every run has
    data = "cifar10"
    model = "excise:preactresnet18,width=16"
    recipe = { preset = "fast", epochs = 20 }
    attack = "badnets"

    [axes]                                   # every combination is a run
    defense = ["none", { name = "grad-prune", inverter = "oracle" }]
    "attack.poison_ratio" = [0.01, 0.1]      # any field of a method is an axis
    spc = [2, 10, 100]
    seed = [0, 1, 2]

    [[grid]]                                 # optional: parts of the sweep, each with
    base = { spc = 100 }                     # its own base and axes over those above;
    axes = { defense = ["clp"] }             # an axis above that a part's base fixes is left out

An unknown name or key fails before anything runs, with the nearest valid one.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.errors import SpecError, nearest
from excise.experiments.runs import DEFAULTS, Run
from excise.registry import parse

__all__ = ["Grid", "read_grid"]

_TABLES = ("base", "axes", "grid", "name")
#: Settings that are tables, so that one of their fields can be an axis.
_NESTED = ("attack", "defense", "recipe")


@dataclass(frozen=True)
class Grid:
    """All runs of a sweep, in the order they are to be started.

    Args:
        name: what the sweep is called.
        runs: checked and complete; equal runs stand once.
    """

    name: str
    runs: tuple[Run, ...]


def read_grid(path: Path) -> Grid:
    """Return the runs a sweep's file describes.

    Raises:
        SpecError: no TOML, an unknown name or key, a value out of range, or no run at all.
        OSError: the file cannot be read.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(
            "a sweep in TOML", got=f"{path.name}: {error}", remedy="See docs/sweeps.md."
        ) from error
    _known(said, _TABLES, "a table of a sweep")
    parts = said.get("grid", [{}])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise SpecError("[[grid]] tables", got=repr(parts), remedy="Write [[grid]], not [grid].")
    runs: dict[str, Run] = {}
    for part in parts:
        _known(part, ("base", "axes"), "a table of [[grid]]")
        base = _table(part, "base")
        axes = {k: v for k, v in _table(said, "axes").items() if k not in base}
        for run in _cells(_table(said, "base") | base, axes | _table(part, "axes")):
            runs.setdefault(repr(run.spec), run)
    if not runs:
        raise SpecError("at least one run", got="none", remedy="Give every axis a value.")
    return Grid(str(said.get("name", path.stem)), tuple(runs.values()))


def _cells(base: Mapping[str, Any], axes: Mapping[str, Any]) -> list[Run]:
    for name, values in axes.items():
        _check_setting(name)
        if not isinstance(values, list):
            raise SpecError(
                f"a list of values for the axis {name}",
                got=repr(values),
                remedy=f"Write {name} = [{values!r}], or move it to [base].",
            )
    # Whole settings before their fields: "attack.alpha" changes what the axis "attack" chose.
    ordered = sorted(axes, key=lambda name: "." in name)
    settings = [name for name in axes if name not in ordered] + ordered
    cells = []
    for values in itertools.product(*(axes[name] for name in settings)):
        said = dict(base)
        for name, value in zip(settings, values, strict=True):
            _set(said, name, value)
        cells.append(Run.of(said))
    return cells


def _set(said: dict[str, Any], name: str, value: Any) -> None:
    setting, dot, field = name.partition(".")
    if not dot:
        said[name] = value
        return
    whole = said.get(setting, DEFAULTS.get(setting))
    if whole is None:
        raise SpecError(
            f"{setting} under [base] or [axes]",
            got=f"only its field {name}",
            remedy=f'Name it first: {setting} = "…".',
        )
    if isinstance(whole, str):
        method, fields = parse(whole) if setting != "recipe" else (whole, {})
        whole = {"preset" if setting == "recipe" else "name": method, **fields}
    # A field of a field: "defense.inverter.steps".
    inner = dict(whole)
    _set(inner, field, value)
    said[setting] = inner


def _check_setting(name: str) -> None:
    setting, dot, _ = name.partition(".")
    if setting not in DEFAULTS:
        raise SpecError("a setting of a run", got=repr(name), remedy=nearest(setting, DEFAULTS))
    if dot and setting not in _NESTED:
        raise SpecError(
            f"a field of {', '.join(_NESTED)}",
            got=repr(name),
            remedy=f'{setting} has no fields; write it out: {setting} = ["…"].',
        )


def _table(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = said.get(name, {})
    if not isinstance(table, dict):
        raise SpecError(f"a table [{name}]", got=repr(table), remedy="See docs/sweeps.md.")
    return table


def _known(said: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in said:
        if key not in known:
            raise SpecError(what, got=repr(key), remedy=nearest(key, known))
