"""``excise report``: write the page of a finished repair again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from excise.reports import write_report

__all__ = ["run"]


@dataclass(frozen=True)
class Report:
    """Write report.html from the record and the pictures of a finished repair."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What `excise repair --out` wrote."""


def run(arguments: list[str]) -> int:
    """Write the page and print its path."""
    asked = tyro.cli(Report, args=arguments, prog="excise report")
    print(f"page: {write_report(asked.directory)}")
    return 0
