"""Runs numbered for a ranking: what is ranked, on what, and the figures it is compared by.

Words: an *entrant* is what is ranked, by default a defense (one for each way its fields were set).
An *instance* is one victim and one budget: every setting that is not the entrant's, seeds
included. A *cell* is an instance without its seeds. Entrants that are victims' attacks, networks or
data have no victim in common: instances then do not tell apart what networks came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from excise.errors import SpecError
from excise.leaderboard.runs import Runs, natural, of_victim

__all__ = ["MEASURES", "Floats", "Indices", "Instances", "Measure", "instances"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measure:
    """A figure of a run that entrants are compared by.

    Args:
        name: what it is called in outputs.
        label: what a person reads.
        query: SQL over a run's columns.
        more: whether more of it is better.
        needed: whether an instance counts only where it was measured.
    """

    name: str
    label: str
    query: str
    more: bool
    needed: bool = True


MEASURES = (
    Measure("der", "DER", "der", True),
    Measure("acc", "ACC", '"after.acc"', True),
    Measure("asr", "ASR", '"after.asr"', False),
    Measure("ra", "RA", '"after.ra"', True),
    Measure("drop", "ACC drop", '"before.acc" - "after.acc"', False, False),
    Measure("seconds", "seconds", "seconds", False, False),
)

#: What was drawn, or came of it.
_DRAWN = ("seed", "victim_seed", "victim")
_ENTRANTS = 500


@dataclass(frozen=True, eq=False)
class Instances:
    """Runs numbered by entrant, instance, cell and victim; arrays have one element a run."""

    names: tuple[str, ...]
    values: tuple[dict[str, str], ...]
    entrant: Indices
    instance: Indices
    cell: Indices
    victim: Indices
    done: npt.NDArray[np.bool_]
    figures: dict[str, Floats]
    labels: tuple[str, ...] = field(repr=False)
    cell_labels: tuple[str, ...] = field(repr=False)


def instances(runs: Runs, by: Sequence[str] = ("defense",)) -> Instances:
    """Number the runs by entrant, instance, cell and victim.

    Raises:
        SpecError: ``by`` names no axis of the runs, or tells too many entrants apart.
    """
    for axis in by:
        runs.check_axis(axis)
    own = [a for a in runs.axes if any(a == b or a.startswith(f"{b}.") for b in by)]
    others = [a for a in runs.axes if a not in own]
    if any(map(of_victim, by)):
        others = [a for a in others if a != "victim"]
    cells = [a for a in others if a not in _DRAWN]
    entrant, count = _numbered(runs, own)
    if count > _ENTRANTS:
        raise SpecError(
            f"at most {_ENTRANTS} of what is ranked",
            got=f"{count:,} by {', '.join(by)}",
            remedy="Choose another --by, or fewer runs with --where.",
        )
    instance, _ = _numbered(runs, others)
    cell, _ = _numbered(runs, cells)
    victim = _victims(runs, others)
    said = [a for a in runs.varying if a in own or a in by]
    values = _values_of(runs, [*by, *(a for a in said if a not in by)], entrant, count)
    names = _unique([_name(by, value) for value in values])
    order = sorted(range(count), key=lambda e: [natural(word) for word in names[e].split(",")])
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    numbers = runs.sql(
        f"SELECT status = 'done', {', '.join(m.query for m in MEASURES)} FROM runs"
    )  # fmt: skip
    table = np.array(numbers, dtype=np.float64).reshape(-1, len(MEASURES) + 1)
    return Instances(
        names=tuple(names[e] for e in order),
        values=tuple(values[e] for e in order),
        entrant=place[entrant],
        instance=instance,
        cell=cell,
        victim=victim,
        done=table[:, 0] == 1,
        figures={m.name: table[:, i] for i, m in enumerate(MEASURES, 1)},
        labels=_labels(runs, [a for a in runs.varying if a in others], instance),
        cell_labels=_labels(runs, [a for a in runs.varying if a in cells], cell),
    )


def _victims(runs: Runs, others: Sequence[str]) -> Indices:
    """Number the victims; the seed tells them apart only where they have none of their own."""
    axes = [a for a in others if of_victim(a) or a == "seed"]
    if "seed" in axes and "victim_seed" in axes:
        table = runs.table
        alone = pc.is_null(table.column("victim_seed"))
        seeds = pc.if_else(alone, table.column("seed"), pa.scalar(None, pa.string()))
        at = table.column_names.index("seed")
        runs = replace(runs, table=table.set_column(at, "seed", seeds))
    elif "victim_seed" in runs.axes:  # it is ranked by: all entrants must meet the same victims
        axes = [a for a in axes if a != "seed"]
    return _numbered(runs, axes)[0]


def _numbered(runs: Runs, axes: Sequence[str]) -> tuple[Indices, int]:
    """Return a number from 0 for every run, the same for runs equal on all ``axes``."""
    ids = np.zeros(runs.table.num_rows, np.int64)
    for axis in axes:
        codes = runs.table.column(axis).combine_chunks().dictionary_encode(null_encoding="encode")
        own = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if len(own) and own.max() > 0:
            _, ids = np.unique(ids * (own.max() + 1) + own, return_inverse=True)
    return ids.astype(np.int64), int(ids.max()) + 1 if len(ids) else 0


def _values_of(runs: Runs, axes: Sequence[str], ids: Indices, count: int) -> list[dict[str, str]]:
    """Return what each group of equal runs is called on every axis that it has."""
    _, first = np.unique(ids, return_index=True)
    rows = runs.table.select(list(dict.fromkeys(axes))).take(first).to_pylist()
    assert len(rows) == count
    return [{a: v for a, v in row.items() if v is not None} for row in rows]


def _labels(runs: Runs, axes: Sequence[str], ids: Indices) -> tuple[str, ...]:
    count = int(ids.max()) + 1 if len(ids) else 0
    if not axes:
        return ("everything",) * count
    rows = _values_of(runs, axes, ids, count)
    return tuple(" · ".join(_said(a, v) for a, v in row.items()) for row in rows)


def _said(axis: str, value: str) -> str:
    """Return a value so that a person knows which axis it is of."""
    if axis in ("data", "model", "attack", "defense"):
        return value
    return f"SPC {value}" if axis == "spc" else f"{axis} {value}"


def _name(by: Sequence[str], values: dict[str, str]) -> str:
    parts = []
    for axis in by:
        fields = [
            f"{name.removeprefix(axis + '.')}={value}"
            for name, value in values.items()
            if name.startswith(f"{axis}.") and name not in by
        ]
        value = values.get(axis, "none said")
        plain = value if len(by) == 1 else _said(axis, value)
        parts.append(",".join([plain, *fields]))
    return " · ".join(parts)


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
