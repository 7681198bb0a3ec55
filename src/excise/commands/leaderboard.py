"""``excise leaderboard``: who is best, by how much, how sure that is; as tables and as a page."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from excise.commands.options import flags, print_json
from excise.errors import DataError
from excise.files import write_text
from excise.leaderboard import rank, read_runs
from excise.leaderboard.page import render_leaderboard
from excise.leaderboard.table import csv_table, json_table, markdown, terminal

__all__ = ["run"]

#: Fewer records are read before anybody wonders.
_MANY = 2000
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Rank the defenses of a store: mean and worst case, with intervals, on the runs all share."""

    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """What `excise sweep` wrote, or a folder of records."""
    by: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Axis whose values are ranked, again for several; default: defense, with those of its fields
    that differ."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only runs with AXIS=VALUE (also AXIS=A,B, AXIS!=VALUE, AXIS>=NUMBER); again for several."""
    order: str = "der"
    """What decides: der, acc, asr, ra, drop (accuracy lost), seconds; worst-der and so on."""
    coverage: float = 0.5
    """Share of the settings that must be finished to be ranked."""
    resamples: int = 2000
    """Bootstrap resamples."""
    csv: Path | None = None
    """Write the ranking as CSV."""
    markdown: Path | None = None
    """Write it as Markdown."""
    page: Path | None = None
    """Write one HTML file that sorts, filters and draws, offline."""
    overwrite: bool = False
    """Replace files that exist."""
    json: bool = False
    """Print everything as JSON."""


def run(arguments: list[str]) -> int:
    """Rank, write what was asked for, print the table."""
    asked = flags(Leaderboard, arguments, "leaderboard", store=tyro.MISSING)
    for path in (asked.csv, asked.markdown, asked.page):
        if path is not None:
            _check_writable(path, asked.overwrite)
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:

        def on_progress(done: int, of: int) -> None:
            if of >= _MANY:
                status.update(f"reading records: {done:,} of {of:,}")

        everything = read_runs(asked.store, on_progress)
    if not everything.table.num_rows:
        unread = f"{len(everything.damaged)} damaged, {everything.newer} of a newer version"
        raise DataError(
            f"at least one record of a run in {asked.store}",
            got=f"none ({unread})" if everything.damaged or everything.newer else "an empty store",
            remedy="Run a sweep first: excise sweep FILE.",
        )
    runs = everything.where(asked.where)
    ranking = rank(
        runs,
        asked.by or ("defense",),
        asked.order,
        coverage=asked.coverage,
        resamples=asked.resamples,
    )
    writers: dict[Path | None, Callable[[Path], str]] = {
        asked.csv: lambda path: csv_table(ranking),
        asked.markdown: lambda path: markdown(ranking, runs),
        asked.page: lambda path: render_leaderboard(ranking, runs, path.parent),
    }
    for path, written in writers.items():
        if path is not None:
            write_text(path, written(path))
    if asked.json:
        print_json(json_table(ranking, runs))
    else:
        # A file or a pipe has no width of its own.
        shown = Console(highlight=False)
        shown.width = shown.width if shown.is_terminal else _WIDTH
        shown.print(terminal(ranking, runs))
        for path in writers:
            if path is not None:
                print(f"written: {path}")
    return 0


def _check_writable(path: Path, overwrite: bool) -> None:
    if path.is_dir() or (path.exists() and not overwrite):
        raise DataError(
            "an output file that does not exist yet",
            got=str(path),
            remedy="Choose another name, or add --overwrite if a file is to be replaced.",
        )
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(
            "a place that can be written to", got=str(path), remedy="Choose another file."
        )
