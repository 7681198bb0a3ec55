"""``excise list``: the registry, for people and for machines. Imports no method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from excise.registry import Kind, Method, rows

__all__ = ["run"]

#: The plural people type, and the kind of row.
PLURALS: dict[str, Kind] = {
    "attacks": "attack",
    "defenses": "defense",
    "inverters": "inverter",
    "scanners": "scanner",
    "detectors": "detector",
    "models": "model",
    "data": "data",
}


@dataclass(frozen=True)
class List:
    """Show what there is: name, what it is, paper, maturity."""

    what: Annotated[
        Literal[
            "attacks", "defenses", "inverters", "scanners", "detectors", "models", "data", "all"
        ],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="KIND"),
    ] = "all"
    """Which part of the registry."""
    json: bool = False
    """Print JSON, with every field of every method: type, default and help."""


def run(arguments: list[str]) -> int:
    """Print the registry."""
    asked = tyro.cli(List, args=arguments, prog="excise list")
    chosen = PLURALS if asked.what == "all" else {asked.what: PLURALS[asked.what]}
    if asked.json:
        said = {plural: [_plain(row) for row in rows(kind)] for plural, kind in chosen.items()}
        print(json.dumps(said, indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for plural, kind in chosen.items():
        console.print(_table(plural, rows(kind)) if rows(kind) else f"{plural}: none yet\n")
    return 0


def _table(plural: str, found: tuple[Method, ...]) -> Table:
    table = Table("name", "what it is", "paper", "maturity", title=plural, title_justify="left")
    table.columns[0].no_wrap = True
    for row in found:
        table.add_row(row.name, row.title, row.paper, row.maturity)
    return table


def _plain(row: Method) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": row.name,
        "title": row.title,
        "paper": row.paper,
        "maturity": row.maturity,
    }
    if row.target and row.kind in ("attack", "defense", "inverter", "scanner", "detector"):
        plain["fields"] = row.fields()
    return plain
