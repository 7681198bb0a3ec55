"""From a directory with a record and its pictures to the page beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from excise.errors import DataError
from excise.files import write_text
from excise.reports.page import render_repair
from excise.reports.record import read_record

__all__ = ["write_report"]

_RECORD_BYTES = 64 * 2**20
_PICTURE_BYTES = 8 * 2**20
_ALL_PICTURES = 64 * 2**20


def write_report(directory: Path) -> Path:
    """Write ``report.html`` from ``record.json`` and the pictures it names; return its path.

    A picture that is not there leaves a gap in the page. The page appears whole or not at all.

    Raises:
        DataError: the record is missing, damaged or of a newer version, or names a picture
            outside of ``directory``.
    """
    record = _load(directory / "record.json")
    path = directory / "report.html"
    write_text(path, render_repair(record, _pictures(directory, record)))
    return path


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"a record at {path}",
            got="no such file",
            remedy="Give the directory that `excise repair` wrote.",
        )
    if path.stat().st_size > _RECORD_BYTES:
        raise DataError(
            f"a record of at most {_RECORD_BYTES // 2**20} MiB",
            got=f"{path.stat().st_size / 2**20:,.0f} MiB in {path}",
            remedy="Check that it is the record of a repair.",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"JSON in {path}",
            got=str(error)[:200],
            remedy="The record is damaged; run the repair again.",
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"a JSON object in {path}",
            got=f"a {type(record).__name__}",
            remedy="Give the directory that `excise repair` wrote.",
        )
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _pictures(directory: Path, record: Mapping[str, Any]) -> dict[str, bytes]:
    """Read the pictures the record names, none from outside of the directory."""
    home = directory.resolve()
    found: dict[str, bytes] = {}
    room = _ALL_PICTURES
    read = read_record(record)
    tried = [one for trigger in read.triggers or [] for one in trigger.shown]
    for picture in [*(read.pictures or []), *tried]:
        for name in (picture.clean, picture.triggered, picture.residual):
            if name is None or name in found:
                continue
            path = _inside(home, name)
            if path is None:
                continue
            size = path.stat().st_size
            room -= size
            if size > _PICTURE_BYTES or room < 0:
                raise DataError(
                    f"pictures of at most {_PICTURE_BYTES // 2**20} MiB each, "
                    f"{_ALL_PICTURES // 2**20} MiB in all",
                    got=f"{size / 2**20:.1f} MiB in {name!r}",
                    remedy="Make the pictures smaller, or take them out of the record.",
                )
            found[name] = path.read_bytes()
    return found


def _inside(home: Path, name: str) -> Path | None:
    """Return the path of a picture, None if there is no such file."""
    try:
        path = (home / name).resolve()
        there = path.is_file()
    except (ValueError, OSError, RuntimeError):  # a null byte, too long, links in a circle
        return None
    if not path.is_relative_to(home):
        raise DataError(
            f"pictures inside {home}",
            got=repr(name[:120]),
            remedy="The record points outside of its own directory: do not trust it.",
        )
    return path if there else None
