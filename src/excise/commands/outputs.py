"""Where a command may write: refused before any work, so that hours of it are not lost."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from excise.errors import DataError

__all__ = ["check_free"]

#: What an interrupted run leaves beside the directory that it was to make.
_LEFT = re.compile(r"\..+\.(checkpoints|part|old)")


def check_free(
    out: Path, overwrite: bool, kind: str = "directory", inputs: Iterable[object] = ()
) -> None:
    """Refuse, before any work, an output directory (or file) that exists or cannot be made.

    Args:
        out: where.
        overwrite: whether what is there may be replaced; never what nobody would want replaced.
        kind: what it is, for messages.
        inputs: what the command reads, as it was given; what names no path does not count.

    Raises:
        DataError: it exists and overwriting was not asked for, or it is or holds an input, or it is
            a directory that Excise did not write; or nothing can be written there, or only into it.
    """
    for given in inputs:
        read = Path(str(given)) if given else None
        if out.exists() and read is not None and _holds(out, read):
            raise DataError(
                f"an output {kind} apart from what is read",
                got=f"{out}, where {read} would be replaced",
                remedy="Choose another --out.",
            )
    if kind == "directory" and out.exists():
        # A directory appears whole, by a move into its place; these cannot be moved away.
        here = Path.cwd().resolve()
        if out.resolve() in (here, *here.parents) or out.is_mount():
            raise DataError(
                "an output directory of its own",
                got=f"{out}, {'a mounted one' if out.is_mount() else 'where this command runs'}",
                remedy=f"Name one inside it: --out {out / 'result'}",
            )
        if overwrite and not _ours(out):
            raise DataError(
                "--overwrite of a directory that Excise wrote",
                got=f"{out}, {'without our record or card' if out.is_dir() else 'a file'}",
                remedy="Choose another --out, or move it away yourself.",
            )
    if out.exists() and not overwrite:
        raise DataError(
            f"an output {kind} that does not exist yet",
            got=str(out),
            remedy="Choose another --out, or add --overwrite.",
        )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(
            f"a writable place for the output {kind}",
            got=f"{out}, where {above} is {'not writable' if above.is_dir() else 'a file'}",
            remedy="Choose another --out.",
        )


def _holds(out: Path, read: Path) -> bool:
    return read.exists() and out.resolve() in (read.resolve(), *read.resolve().parents)


def _ours(out: Path) -> bool:
    """Return whether a directory holds a record or card that Excise wrote, or nothing but what an
    interrupted run left."""
    if not out.is_dir():
        return False
    return all(_LEFT.fullmatch(entry.name) for entry in out.iterdir()) or any(
        "version" in said and ("kind" in said or str(said.get("created_by")).startswith("excise"))
        for mark in ("record.json", "card.json", "victim/card.json")
        if isinstance(said := _json(out / mark), dict)
    )


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
