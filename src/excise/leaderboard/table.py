"""A ranking as text: for a terminal, as Markdown, as CSV, as plain data for JSON."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from excise.leaderboard.instances import MEASURES
from excise.leaderboard.published import Beside, beside
from excise.leaderboard.ranking import Figure, Ranking, Standing
from excise.leaderboard.runs import Runs
from excise.reports.formats import clean, percent, value_text

__all__ = [
    "csv_table",
    "json_table",
    "markdown",
    "method",
    "plain_lines",
    "plain_sentences",
    "terminal",
]

_SHOWN = ("der", "acc", "asr", "ra")
_REFERENCES = {"before": "before repair", "floor": "clean twin"}


def terminal(ranking: Ranking, runs: Runs) -> Group:
    """Return the ranking for a terminal: value, interval and worst cell on three lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for i, name in enumerate(_header(ranking)):
        if i == 1:
            wide = len(_REFERENCES["before"])
            table.add_column(name, justify="left", overflow="fold", min_width=wide)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for line in _lines(ranking):
        # So short that the whole table fits 80 columns.
        table.add_row(*(Text(cell.replace("worst ", "").replace(" of ", "/")) for cell in line))
    said = [Text("In a column: mean, 95 % interval, worst cell.")]
    said += [Text(line) for line in plain_sentences(ranking, runs)]
    reported = len(beside(runs))
    if reported:
        said.append(
            Text(
                f"{_count(reported, 'figure')} that papers report of these methods: beside what "
                "was measured in --markdown, --page and --json."
            )
        )
    return Group(table, *said)


def markdown(ranking: Ranking, runs: Runs) -> str:
    """Return the ranking as Markdown."""
    header = _header(ranking)
    lines = [header, ["---:", "---", *["---:"] * (len(header) - 2)]]
    for line in _lines(ranking):
        lines.append([_escaped(cell).replace("\n", "<br>") for cell in line])
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text += "\n" + "".join(f"{_escaped(line)}\n\n" for line in plain_sentences(ranking, runs))
    found = beside(runs)
    if found:
        rows = [list(_REPORTED), ["---"] * 5 + ["---:"] * 4 + ["---"]]
        rows += [[_escaped(cell) for cell in _reported_line(row)] for row in found]
        text += "Reported elsewhere, beside measured here (%)\n\n"
        text += "".join(f"| {' | '.join(line)} |\n" for line in rows)
    return text


def csv_table(ranking: Ranking) -> str:
    """Return the ranking as CSV: fractions as numbers, nothing where nothing was measured."""
    axes = list(dict.fromkeys(axis for s in ranking.standings for axis in s.values))
    ends = ("mean", "low", "high", "worst", "worst_low", "worst_high", "worst_cell")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "rank", "name", *axes, *(f"{m.name}_{end}" for m in MEASURES for end in ends),
        "rank_kept", "covered", "instances", "shared", "done", "failed",
    ])  # fmt: skip
    for s in ranking.standings:
        figures = [
            getattr(s.figures[m.name], end) if m.name in s.figures else None
            for m in MEASURES
            for end in ends
        ]
        row = [
            s.rank, s.name, *(s.values.get(axis) for axis in axes), *figures, s.kept,
            s.covered, ranking.instances, ranking.shared, s.done, s.failed,
        ]  # fmt: skip
        writer.writerow([_for_a_spreadsheet(cell) for cell in row])
    return out.getvalue()


def json_table(ranking: Ranking, runs: Runs) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "version": 1,
        "kind": "leaderboard",
        "where": list(runs.conditions),
        "finished": runs.done,
        "failed": runs.failed,
        "replaced": runs.replaced,
        "newer": runs.newer,
        "damaged": [{"path": path, "why": why} for path, why in runs.damaged],
        **asdict(ranking),
        "reported": [asdict(row) for row in beside(runs)],
    }


def plain_sentences(ranking: Ranking, runs: Runs) -> list[str]:
    """Return what a reader has to know besides the figures."""
    said = [
        f"{_count(ranking.shared, 'run')} each, of {ranking.instances:,} settings tried: those "
        f"that all {len(ranking.ranked)} ranked finished; {_count(ranking.victims, 'victim')}, "
        f"{_count(ranking.cells, 'cell')}."
    ]
    if runs.conditions:
        said.append(f"Only {' and '.join(map(clean, runs.conditions))}.")
    left = [s for s in ranking.standings if s.rank is None]
    if left:
        names = ", ".join(f"{clean(s.name)} ({s.covered:,})" for s in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        said.append(
            f"Not ranked, since they finished less than {ranking.coverage:.0%} of the "
            f"{ranking.instances:,} settings or share none: {names}{more}."
        )
    holes = [s for s in ranking.ranked if s.covered < ranking.instances]
    if holes:
        worst = min(holes, key=lambda s: s.covered)
        said.append(
            f"Holes count for nobody: {clean(worst.name)} lacks "
            f"{_count(ranking.instances - worst.covered, 'setting')}, "
            f"such as {clean(worst.missing[0])}."
        )
    said += [clean(note) for note in ranking.notes]
    if ranking.unattacked:
        said.append(f"{_count(ranking.unattacked, 'run')} without a trigger to measure left out.")
    if runs.failed:
        said.append(f"{_count(runs.failed, 'run')} failed; their records say why.")
    if runs.replaced:
        said.append(f"{_count(runs.replaced, 'older record')} of runs done again left out.")
    if runs.newer:
        said.append(f"{_count(runs.newer, 'record')} of a newer Excise skipped.")
    if runs.damaged:
        path, why = runs.damaged[0]
        said.append(
            f"{_count(len(runs.damaged), 'record')} could not be read, such as "
            f"{clean(path)}: {clean(why)}."
        )
    return [*said, method(ranking)]


def plain_lines(ranking: Ranking) -> list[list[str]]:
    """Return the header of the table and its lines."""
    return [_header(ranking), *_lines(ranking)]


def method(ranking: Ranking) -> str:
    """Return how the intervals and the rank shares came about."""
    if ranking.victims >= 10:
        how = f"{ranking.resamples:,} bootstrap resamples of the {ranking.victims:,} victims"
    elif ranking.victims > 1:
        how = f"Student's t over {ranking.victims} victims, few as they are"
    else:
        return "One victim: no interval, and no saying how stable the ranks are."
    return (
        f"Intervals (95 %): {how}. Worst: the cell with the worst mean over its seeds. "
        f"Stable: share of {ranking.resamples:,} resamples of victims in which the rank stays."
    )


def _header(ranking: Ranking) -> list[str]:
    arrows = [f"{m.label} {'↑' if m.more else '↓'}" for m in MEASURES if m.name in _SHOWN]
    return ["#", " · ".join(ranking.by), *arrows, "stable", "runs", "s"]


def _lines(ranking: Ranking) -> list[list[str]]:
    lines = [_line(s, ranking) for s in ranking.standings]
    for part, means in ranking.references.items():
        figures = [percent(means[m])[:-1] if m in means else "—" for m in _SHOWN]
        lines.append(["", _REFERENCES[part], *figures, "", "", ""])
    return lines


def _line(s: Standing, ranking: Ranking) -> list[str]:
    figures = [_figure(s.figures.get(name)) for name in _SHOWN]
    runs = f"{s.covered:,} of {ranking.instances:,}"
    if s.failed:
        runs += f"\n{s.failed:,} failed"
    seconds = s.figures.get("seconds")
    return [
        "—" if s.rank is None else str(s.rank),
        clean(s.name),
        *figures,
        "—" if s.kept is None else f"{s.kept:.0%}",
        runs,
        "—" if seconds is None else _seconds(seconds.mean),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}"


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "—"
    if figure.low is None or figure.high is None:
        mean = percent(figure.mean)[:-1]
    else:
        mean = value_text(figure.mean, figure.low, figure.high)
        mean = mean.replace(" (", "\n").removesuffix(")")
    return f"{mean}\nworst {percent(figure.worst)[:-1]}"


_REPORTED = (
    "method", "data", "attack", "given", "source", "ACC", "ASR", "RA", "DER", "measured on",
)  # fmt: skip


def _reported_line(row: Beside) -> list[str]:
    said = row.reported
    figures = []
    for name in ("acc", "asr", "ra", "der"):
        reported, measured = getattr(said, name), row.measured.get(name)
        pair = [percent(v)[:-1] if v is not None else "—" for v in (reported, measured)]
        figures.append(" | ".join(pair) if reported is not None else f"— | {pair[1]}")
    here = f"{_count(row.runs, 'run')}: {clean(row.setting)}" if row.runs else "nothing run here"
    note = f" ({said.note})" if said.note else ""
    return [
        said.defense, said.data, said.attack, said.clean, f"{said.source}{note}", *figures, here,
    ]  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", clean(text))


def _for_a_spreadsheet(cell: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: names are somebody else's."""
    if isinstance(cell, str):
        cell = " ".join(clean(cell).split())
        return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
    return "" if cell is None else cell
