"""The before-and-after table of a repair: as plain data, in a terminal, and in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from excise.reports.formats import change_text, clean, duration, value_text
from excise.reports.record import Interval, Rate, Record, doubts, read_record
from excise.reports.recovered import strongest

__all__ = [
    "Change",
    "RepairTable",
    "Row",
    "markdown_table",
    "repair_table",
    "terminal_table",
]

Better = Literal["higher", "lower"]

_MEASURES: tuple[tuple[str, str, str, Better, str], ...] = (
    (
        "acc",
        "ACC",
        "Clean accuracy",
        "higher",
        "Of ordinary test images, how many the network names correctly.",
    ),
    (
        "asr",
        "ASR",
        "Attack success rate",
        "lower",
        "Of test images with the trigger, how many end up in the class the attacker wants.",
    ),
    (
        "ra",
        "RA",
        "Recovery accuracy",
        "higher",
        "Of the same triggered images, how many get their true class. A network can stop "
        "obeying the trigger and still be wrong.",
    ),
    (
        "target_recall",
        "Recall",
        "Recall of the target class",
        "higher",
        "Of ordinary images of the attacker’s class, how many are recognized. Forgetting that "
        "class would lower ASR, and would not be a repair.",
    ),
)


@dataclass(frozen=True)
class Change:
    """After minus before, as fractions; no interval where the record holds none.

    ``meaning`` is ``"better"`` or ``"worse"`` where the interval excludes zero, ``"unclear"``
    where it does not, and empty where there is none.
    """

    value: float
    low: float | None
    high: float | None
    meaning: Literal["better", "worse", "unclear", ""]


@dataclass(frozen=True)
class Row:
    """One measure. A cell is None where it was not measured."""

    key: str
    short: str
    name: str
    better: Better
    explanation: str
    before: Rate | None
    pruned: Rate | None
    after: Rate | None
    floor: Rate | None
    change: Change | None


@dataclass(frozen=True)
class RepairTable:
    """The table of one repair. ``has_pruned`` and ``has_floor`` say which columns exist."""

    rows: tuple[Row, ...]
    der: Interval | None
    has_pruned: bool
    has_floor: bool

    def header(self) -> list[str]:
        """Return the names of the columns."""
        columns = ["", "before"]
        columns += ["pruned"] if self.has_pruned else []
        columns += ["after", "change"]
        return columns + (["clean twin"] if self.has_floor else [])

    def cells(self) -> list[list[str]]:
        """Return the rows as text, ``—`` where nothing was measured; DER, if any, comes last."""
        lines = []
        for row in self.rows:
            line = [f"{row.short} {'↑' if row.better == 'higher' else '↓'}", _text(row.before)]
            line += [_text(row.pruned)] if self.has_pruned else []
            change = row.change
            line += [
                _text(row.after),
                change_text(change.value, change.low, change.high) if change else "—",
            ]
            lines.append(line + ([_text(row.floor)] if self.has_floor else []))
        if self.der:
            line = ["DER ↑"] + ["—"] * (len(self.header()) - 1)
            line[self.header().index("after")] = _text(self.der)
            lines.append(line)
        return lines


def _text(cell: Rate | Interval | None) -> str:
    return value_text(cell.value, cell.low, cell.high) if cell else "—"


def _change(record: Record, key: str, better: Better) -> Change | None:
    old, new = getattr(record.before, key), getattr(record.after, key)
    if old is None or new is None:
        return None
    value = new.value - old.value
    stated: Interval | None = getattr(record.comparison, f"delta_{key}", None)
    if stated is None or abs(stated.value - value) > 1e-6:  # the latter is among the doubts
        return Change(value, None, None, "")
    if stated.low <= 0 <= stated.high:
        return Change(value, stated.low, stated.high, "unclear")
    good = (stated.low > 0) == (better == "higher")
    return Change(value, stated.low, stated.high, "better" if good else "worse")


def _recovered(record: Record) -> Row | None:
    """Return what the strongest recovered trigger does in both networks; None: there is none."""
    best = strongest(record.triggers or [])
    if best is None:
        return None
    before, after = best
    change = Change(after.value - before.value, None, None, "") if after else None
    return Row(
        key="recovered",
        short="Found",
        name="Recovered trigger",
        better="lower",
        explanation="Of images of other classes with the strongest trigger that was recovered, how "
        "many end up in its class. The true trigger may do more.",
        before=before,
        pruned=None,
        after=after,
        floor=None,
        change=change,
    )


def table_of(record: Record) -> RepairTable:
    """Return the table of a record that was read before."""
    rows = tuple(
        Row(
            key=key,
            short=short,
            name=name,
            better=better,
            explanation=explanation,
            before=getattr(record.before, key),
            pruned=getattr(record.pruned, key, None),
            after=getattr(record.after, key),
            floor=getattr(record.floor, key, None),
            change=_change(record, key, better),
        )
        for key, short, name, better, explanation in _MEASURES
    )
    found = _recovered(record)
    rows += (found,) if found else ()
    der = record.comparison.der if record.comparison else None
    return RepairTable(rows, der, record.pruned is not None, record.floor is not None)


def repair_table(record: Mapping[str, Any]) -> RepairTable:
    """Return the before-and-after table of a repair as plain data.

    Raises:
        DataError: the record cannot be read.
    """
    return table_of(read_record(record))


def terminal_table(record: Mapping[str, Any]) -> Table:
    """Return the before-and-after table of a repair for a terminal; below it any doubts.

    Raises:
        DataError: the record cannot be read.
    """
    read = read_record(record)
    data = table_of(read)
    found = [Text(f"{c.level}: {clean(c.message)}") for c in doubts(read)]
    table = Table(
        title="Percent; below each value its 95% interval",
        box=box.SIMPLE,
        caption=Text("\n").join(found) if found else None,
        caption_justify="left",
    )
    for name in data.header():
        style = "bold" if name == "after" else ""
        table.add_column(name, justify="right" if name else "left", style=style, overflow="fold")
    for line in data.cells():
        # The interval on a line of its own, so that the table fits 80 columns unbroken.
        table.add_row(*(Text(cell.replace(" (", "\n").removesuffix(")")) for cell in line))
    return table


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$@-])")


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(clean(text).split()))


def _name(value: Any) -> str:
    return _markdown(str(value)) if value is not None else "—"


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one Markdown row a repair, in the given order, for the documentation.

    Raises:
        DataError: a record cannot be read.
    """
    header = [
        "defense",
        "inverter",
        "attack",
        "data",
        "network",
        "SPC",
        "seed",
        "ACC before",
        "ACC after ↑",
        "ASR before",
        "ASR after ↓",
        "RA after ↑",
        "DER ↑",
        "filters cut",
        "time",
    ]
    lines = [header, ["---"] * 7 + ["---:"] * (len(header) - 7)]
    for record in map(read_record, records):
        layers = record.filters or []
        cut, total = sum(len(x.cut) for x in layers), sum(x.filters for x in layers)
        seconds = (record.seconds or {}).get("total")
        lines.append(
            [
                _name(record.setting("defense", "name")),
                _name(record.setting("defense", "inverter", "name")),
                _name(record.setting("model", "attack", "name")),
                _name(record.source),
                _name(record.setting("model", "arch")),
                _name(record.setting("spc")),
                _name(record.setting("seed")),
                _text(record.before.acc),
                _text(record.after.acc),
                _text(record.before.asr),
                _text(record.after.asr),
                _text(record.after.ra),
                _text(record.comparison.der if record.comparison else None),
                f"{cut:,} of {total:,}" if layers else "—",
                duration(seconds) if seconds is not None else "—",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
