"""What a leaderboard is made from: the runs of a store, chosen by axis, queried with DuckDB.

Runs that differ in nothing but their key (a method's version was raised, the data changed) are one
run done again: the newest counts, the others are counted as replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from excise.errors import SpecError, nearest
from excise.leaderboard.flat import COUNTS, NUMBERS, WORDS
from excise.leaderboard.reading import read_table

__all__ = ["Runs", "natural", "number", "of_victim", "read_runs"]

_CONDITION = re.compile(r"\s*([^=!<>\s]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_SAID = ("data", "model", "attack", "defense", "…", "spc", "seed")
#: What tells two victims apart; the defender's budget and what is done with it do not. ``victim``
#: is a hash of its weights.
_VICTIM = (
    "data", "image_size", "limit", "model", "recipe", "victim_images", "half", "attack",
    "victim_seed", "victim",
)  # fmt: skip
_NOT_AXES = {*WORDS, *COUNTS, *NUMBERS}
#: The column of a row's number; no axis begins like that.
_ROW = "_row"


@dataclass(frozen=True, eq=False)
class Runs:
    """Finished and failed runs, one row each, and what was left out.

    Args:
        table: every run, columns as in :mod:`excise.leaderboard.flat`.
        store: where their records lie.
        newer: how many records a newer Excise wrote; they are not among the runs.
        damaged: records that could not be read, as (path, why); not among the runs either.
        replaced: how many runs were done again since.
        conditions: what the runs were chosen by, as a person wrote it.
        fresh: how many records were read; the rest came from the cache.
    """

    table: pa.Table
    store: Path
    newer: int = 0
    damaged: tuple[tuple[str, str], ...] = ()
    replaced: int = 0
    conditions: tuple[str, ...] = ()
    fresh: int = field(default=0, compare=False)

    @cached_property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Every axis with the values it takes here, numbers by size before words by alphabet."""
        found = {}
        for name in sorted(self.table.column_names, key=_place):
            if name not in _NOT_AXES:
                words = [v for v in pc.unique(self.table.column(name)).to_pylist() if v is not None]
                if words:
                    found[name] = tuple(sorted(words, key=natural))
        return found

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """The axes along which these runs differ.

        A method's field is among them only if it differs between runs of that method, a network's
        hash only if it differs between networks that are otherwise called the same.
        """
        return tuple(name for name in self.axes if self._varies(name))

    def _varies(self, name: str) -> bool:
        column = self.table.column(name)
        if len(self.axes[name]) + (column.null_count > 0) < 2:
            return False
        if name == "victim":
            above = [a for a in self.axes if of_victim(a) and a != "victim"]
        else:
            above = [a for a in self.axes if a == name.rpartition(".")[0]]
        if not above:
            return True
        inner, outer = _quoted(name), ", ".join(map(_quoted, above))
        query = f"""
            SELECT count(*) FROM (SELECT {outer} FROM runs GROUP BY {outer}
            HAVING count(DISTINCT coalesce({inner}, chr(1))) > 1)
        """
        return bool(self.sql(query)[0][0])

    @property
    def done(self) -> int:
        """How many runs are finished."""
        return sum(status == "done" for status in self.table.column("status").to_pylist())

    @property
    def failed(self) -> int:
        """How many runs failed."""
        return int(self.table.num_rows) - self.done

    def sql(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the table ``runs``."""
        with _connection() as connection:
            connection.register("runs", self.table)
            rows: list[tuple[Any, ...]] = connection.execute(query, list(values)).fetchall()
            return rows

    def where(self, said: Sequence[str]) -> Runs:
        """Return the runs for which every condition holds.

        Args:
            said: ``axis=value``, ``axis=one,other``, ``axis!=value``, ``axis>=number`` (also
                ``<=``, ``<``, ``>``). Two conditions with ``=`` on one axis mean either.

        Raises:
            SpecError: no condition, an unknown axis or value, or no run that meets them all.
        """
        if not said:
            return self
        wanted: dict[str, list[str]] = {}
        clauses: list[str] = []
        values: list[str | float] = []
        for text in said:
            axis, sign, rest = self._condition(text)
            if sign == "=":
                wanted.setdefault(axis, []).extend(self._values(axis, rest))
            elif sign == "!=":
                chosen = self._values(axis, rest)
                marks = ", ".join("?" * len(chosen))
                clauses.append(f"({_quoted(axis)} IS NULL OR {_quoted(axis)} NOT IN ({marks}))")
                values += chosen
            else:
                bound = number(rest)
                if bound is None:
                    raise SpecError(
                        f"a number after {axis}{sign}",
                        got=repr(rest),
                        remedy=f"Write {axis}{sign}0.1.",
                    )
                clauses.append(f"TRY_CAST({_quoted(axis)} AS DOUBLE) {sign} ?")
                values.append(bound)
        for axis, chosen in wanted.items():
            clauses.append(f"{_quoted(axis)} IN ({', '.join('?' * len(chosen))})")
            values += chosen
        query = f"SELECT {_ROW} FROM runs WHERE {' AND '.join(clauses)} ORDER BY 1"
        with _connection() as connection:
            connection.register("runs", _numbered(self.table))
            kept = connection.execute(query, values).fetchnumpy()[_ROW]
        if not len(kept):
            raise SpecError(
                "at least one run that meets every condition",
                got=" and ".join(said),
                remedy="Leave one of them out.",
            )
        return replace(
            self, table=self.table.take(pa.array(kept)), conditions=(*self.conditions, *said)
        )

    def check_axis(self, name: str) -> str:
        """Return ``name`` if it is an axis of these runs.

        Raises:
            SpecError: it is none.
        """
        if name not in self.axes:
            raise SpecError("an axis of the runs", got=repr(name), remedy=nearest(name, self.axes))
        return name

    def _condition(self, text: str) -> tuple[str, str, str]:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise SpecError(
                "a condition AXIS=VALUE", got=repr(text), remedy="Write --where attack=badnets."
            )
        axis, sign, rest = match.groups()
        return self.check_axis(axis), sign, rest

    def _values(self, axis: str, said: str) -> list[str]:
        """Return the values that a person means: one, or several separated by commas."""
        known = self.axes[axis]
        # A network's name holds commas of its own.
        for words in ([said], said.split(",")):
            found = [_meant(word.strip(), known) for word in words]
            if all(word is not None for word in found):
                return [word for word in found if word is not None]
        wrong = next(word for word in said.split(",") if _meant(word.strip(), known) is None)
        raise SpecError(
            f"a value of the axis {axis}",
            got=repr(wrong.strip()),
            remedy=nearest(wrong.strip(), known) if len(known) <= 30 else _some(known),
        )


def read_runs(store: Path, on_progress: Callable[[int, int], None] | None = None) -> Runs:
    """Return every run of a store that can be read.

    Raises:
        DataError: it is no store; :class:`~excise.leaderboard.reading.read_table` says which.
    """
    listing = read_table(store, on_progress)
    whole = Runs(listing.table, store, fresh=listing.fresh)
    damaged = whole.sql("SELECT path, why FROM runs WHERE status = 'damaged' ORDER BY path")
    newer = whole.sql("SELECT count(*) FROM runs WHERE status = 'newer'")[0][0]
    axes = [name for name in listing.table.column_names if name not in _NOT_AXES]
    # A finished run stands for a failed one; among equals the newest counts.
    same = ", ".join(map(_quoted, axes)) or "path"
    query = f"""
        SELECT {_ROW} FROM runs WHERE status IN ('done', 'failed')
        QUALIFY row_number() OVER (
            PARTITION BY {same} ORDER BY status, created DESC NULLS LAST, path
        ) = 1 ORDER BY 1
    """
    with _connection() as connection:
        connection.register("runs", _numbered(listing.table))
        kept = connection.execute(query).fetchnumpy()[_ROW]
    known = listing.table.num_rows - len(damaged) - int(newer)
    return replace(
        whole,
        table=listing.table.take(pa.array(kept, pa.int64())),
        newer=int(newer),
        damaged=tuple((str(path), str(why)) for path, why in damaged),
        replaced=known - len(kept),
    )


def of_victim(axis: str) -> bool:
    """Return whether an axis tells victims apart; the seed does too where no axis does."""
    return axis.partition(".")[0] in _VICTIM


def natural(word: str) -> tuple[int, float, str]:
    """Return what to sort words by: numbers by size, before all others."""
    value = number(word)
    return (1, 0.0, word) if value is None else (0, value, word)


def number(word: str) -> float | None:
    """Return the number a word says, None if it says none."""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None


def _place(axis: str) -> tuple[int, str]:
    """Return what to sort axes by: as a person says a run, what was cut before who cut it."""
    first = axis.partition(".")[0]
    return (_SAID.index(first) if first in _SAID else _SAID.index("…")), axis


def _meant(word: str, known: Sequence[str]) -> str | None:
    if word in known:
        return word
    value = number(word)
    if value is None:
        return None
    return next((other for other in known if number(other) == value), None)


def _some(known: Sequence[str]) -> str:
    return f"Known: {', '.join(known[:30])}, … ({len(known):,} in all)."


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _numbered(table: pa.Table) -> pa.Table:
    return table.append_column(_ROW, pa.array(range(table.num_rows), pa.int64()))


def _connection() -> duckdb.DuckDBPyConnection:
    """Return a database in memory that reaches neither files nor the network."""
    return duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "enable_external_access": "false",
        },
    )
