"""From a store's records to one table, read again only where they changed.

What was read is kept as ``STORE/cache/runs.parquet``. It holds nothing that the records do not:
removed, damaged, outdated or impossible to write, it is read again or left out. The records are
never touched. Two processes may read at once: each writes the whole file under another name and
moves it there.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from excise.errors import DataError
from excise.files import whole_file
from excise.leaderboard.flat import COUNTS, NUMBERS, WORDS, flatten, parse

__all__ = ["CACHE", "Listing", "read_table"]

CACHE = "cache/runs.parquet"
#: Raised when a row is made differently: the cache is then made anew.
_VERSION = b"1"
_STORE_VERSION = 1
_RECORD_BYTES = 64 * 2**20
_AXES_IN_ALL = 1000
#: A record written so shortly before it was read may be replaced within the clock's resolution.
_RACY_NS = 2_000_000_000

_TYPES = (
    {name: pa.string() for name in WORDS}
    | {name: pa.int64() for name in COUNTS}
    | {name: pa.float64() for name in NUMBERS}
)


@dataclass(frozen=True)
class Listing:
    """Every record of a store, one row each.

    Args:
        table: the columns of :mod:`excise.leaderboard.flat`, then one for every axis.
        fresh: how many records were read; the rest came from the cache.
        cached: whether the cache could be written, or had nothing to be written.
    """

    table: pa.Table
    fresh: int
    cached: bool


def read_table(store: Path, on_progress: Callable[[int, int], None] | None = None) -> Listing:
    """Return every record under ``store``: a sweep's store, or a folder of repairs' records.

    Args:
        store: not written to but for its cache, which a folder without ``store.json`` has not.
        on_progress: called now and then with how many records were read, and of how many.

    Raises:
        DataError: there is no such directory, or it is a store of a newer version.
    """
    sweep = _is_sweep(store)
    files = {path: (mtime, size) for path, mtime, size in _files(store, sweep)}
    known = _known(store / CACHE) if sweep else None
    if known is not None:
        keep = [
            files.get(path) == (mtime, size)
            for path, mtime, size in zip(
                *(known.column(name).to_pylist() for name in ("path", "mtime_ns", "size")),
                strict=True,
            )
        ]
        gone = not all(keep)
        known = known.filter(pa.array(keep, pa.bool_()))
        for path in known.column("path").to_pylist():
            del files[path]
    if known is not None and not files and not gone:
        return Listing(known, 0, True)
    now = time.time_ns()
    rows = []
    for done, (path, (mtime, size)) in enumerate(sorted(files.items()), 1):
        # A file's name may be no UTF-8, which a table's text must be.
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        row = _read(store / path, Path(name).stem if sweep else None, size)
        if row is None:  # removed since it was listed
            continue
        row |= {"path": name, "mtime_ns": mtime if mtime < now - _RACY_NS else -1, "size": size}
        rows.append(row)
        if on_progress is not None and (done % 500 == 0 or done == len(files)):
            on_progress(done, len(files))
    table = _tabled(rows)
    if known is not None:
        table = pa.concat_tables([known, table], promote_options="default")
    if len(table.column_names) > len(_TYPES) + _AXES_IN_ALL:
        raise DataError(
            f"at most {_AXES_IN_ALL} different settings in all records",
            got=f"{len(table.column_names) - len(_TYPES):,}",
            remedy="Check that these are the records of a sweep.",
        )
    table = table.take(pc.sort_indices(table, [("path", "ascending")]))
    return Listing(table, len(rows), sweep and _keep(table, store / CACHE))


def _is_sweep(store: Path) -> bool:
    """Return whether this is a sweep's store, after refusing what cannot be read."""
    if not store.is_dir():
        raise DataError(
            "a store's directory",
            got=f"{store}, which {'is a file' if store.exists() else 'does not exist'}",
            remedy="Give the --store of `excise sweep`, or a folder of records.",
        )
    described = store / "store.json"
    if not described.exists():
        return False
    try:
        said = json.loads(described.read_text(encoding="utf-8"))
        kind, version = said["kind"], int(said["version"])
    except (ValueError, KeyError, TypeError):
        kind, version = None, 0
    if kind != "excise store" or version > _STORE_VERSION:
        raise DataError(
            "a store this version of Excise can read",
            got=str(store),
            remedy="Check store.json, or update Excise.",
        )
    return True


def _files(store: Path, sweep: bool) -> Iterator[tuple[str, int, int]]:
    """Yield path below ``store``, time and size of every record."""
    if sweep:
        for folder in _entries(store / "records"):
            if len(folder.name) == 2 and folder.is_dir():
                for entry in _entries(Path(folder.path)):
                    if entry.name.endswith(".json"):
                        yield from _listed(entry, f"records/{folder.name}/{entry.name}")
        return
    for entry in _entries(store):
        if entry.is_dir():
            for inner in _entries(Path(entry.path)):
                if inner.name == "record.json":  # what `excise repair --out` wrote
                    yield from _listed(inner, f"{entry.name}/{inner.name}")
        elif entry.name.endswith(".json"):
            yield from _listed(entry, entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _listed(entry: os.DirEntry[str], path: str) -> Iterator[tuple[str, int, int]]:
    with contextlib.suppress(FileNotFoundError):  # removed since
        there = entry.stat()
        if stat.S_ISREG(there.st_mode):
            yield path, there.st_mtime_ns, there.st_size


def _read(path: Path, stem: str | None, size: int) -> dict[str, Any] | None:
    if size > _RECORD_BYTES:
        return {"status": "damaged", "key": stem, "why": f"{size / 2**20:,.0f} MiB"}
    try:
        return flatten(parse(path.read_bytes()), stem)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return {"status": "damaged", "key": stem, "why": f"{type(error).__name__}: {why}"[:300]}


def _tabled(rows: list[dict[str, Any]]) -> pa.Table:
    axes = sorted({name for row in rows for name in row} - _TYPES.keys())
    columns = {n: pa.array([row.get(n) for row in rows], t) for n, t in _TYPES.items()}
    for name in axes:
        columns[name] = pa.array([row.get(name) for row in rows], pa.string())
    return pa.table(columns)


def _known(path: Path) -> pa.Table | None:
    """Return what was read before; None where there is nothing that can be trusted."""
    try:
        table = pq.read_table(path, page_checksum_verification=True, memory_map=False)
        metadata = table.schema.metadata or {}
        types_hold = all(table.schema.field(name).type == t for name, t in _TYPES.items())
        axes_hold = all(
            table.schema.field(name).type == pa.string()
            for name in table.column_names
            if name not in _TYPES
        )
    except (OSError, pa.ArrowException, KeyError, MemoryError):
        return None
    if metadata.get(b"excise.runs") != _VERSION or not types_hold or not axes_hold:
        return None
    return table.replace_schema_metadata(None)


def _keep(table: pa.Table, path: Path) -> bool:
    try:
        with whole_file(path) as part:
            pq.write_table(
                table.replace_schema_metadata({b"excise.runs": _VERSION}),
                part,
                compression="zstd",
                write_page_checksum=True,
            )
    except OSError:  # a full or read-only disk; the records are all there is to lose
        return False
    return True
