"""The store: a directory of records and victims that survives whatever happens to its writers.

::

    STORE/
      store.json            what this directory is
      records/ab/ab….json   one versioned record a key: a finished run, or a failed one
      victims/KEY/          bundles, shared by every run that needs them
      leases/               who works on what at this moment

A record appears whole or not at all. One that cannot be read (a damaged disk, an edited file) is
moved aside, never deleted, and its run counts as not done. A record of a newer version is left
alone and counts as done. A bundle whose card cannot be read counts as not planted.
"""

from __future__ import annotations

import contextlib
import json
import math
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from excise.errors import DataError
from excise.experiments.lease import Lease
from excise.files import whole_file, write_json

__all__ = ["RECORD_VERSION", "DamagedRecordWarning", "Store"]

#: Version of the records a sweep writes; older ones are brought up to date when they are read.
RECORD_VERSION = 1
_STORE = {"kind": "excise store", "version": 1}


class DamagedRecordWarning(UserWarning):
    """A record could not be read; it was moved aside and its run counts as not done."""


class Store:
    """Records and victims under one directory.

    Args:
        root: made if it does not exist.
        shelves: further directories with bundles; those whose card names a key that is asked for
            are used where they are.
        make: False: only look, and make nothing.

    Raises:
        DataError: ``root`` is something else than a store, of a newer version, or not writable.
    """

    def __init__(self, root: Path, shelves: tuple[Path, ...] = (), *, make: bool = True) -> None:
        self.root = root
        self.shelves = shelves
        self._shelved: dict[str, Path] | None = None
        self._readable: set[str] = set()
        described = root / "store.json"
        # Another start may describe the store between the two looks.
        if not described.exists() and _holds_more(root) and not described.exists():
            raise DataError(
                "a store, or an empty place for one",
                got=f"{root}, which holds something else",
                remedy="Choose another --store.",
            )
        if described.exists():
            self._check(described)
        else:
            if not make:
                return
            # Written where leftovers of the killed do no harm, then moved in one step.
            fresh = root / "leases" / f".{uuid.uuid4().hex}.json"
            write_json(fresh, _STORE)
            fresh.replace(described)
        if not make:
            return
        # A full or read-only disk is better found now than when the first run is done.
        attempt = root / "leases" / ".try"
        with whole_file(attempt) as part:
            part.write_text("writable")
        attempt.unlink(missing_ok=True)

    @staticmethod
    def _check(described: Path) -> None:
        try:
            said = json.loads(described.read_text(encoding="utf-8"))
            kind, version = said["kind"], int(said["version"])
        except (OSError, ValueError, KeyError, TypeError):
            kind, version = None, 0
        if kind != _STORE["kind"] or version > int(str(_STORE["version"])):
            raise DataError(
                "a store this version of Excise can read",
                got=str(described.parent),
                remedy="Choose another --store, or update Excise.",
            )

    # Records

    def path(self, key: str) -> Path:
        """Return where the record of ``key`` lies."""
        return self.root / "records" / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of ``key``; None if there is none that can be read."""
        return self._read(self.path(key))

    def put(self, record: Mapping[str, Any]) -> Path:
        """Write a record under its own key, whole or not at all; return where.

        A finished run's record is never replaced by a failed one's, nor one of a newer version by
        any.

        Raises:
            OSError: the disk is full or read-only; what was there stays.
        """
        path = self.path(record["key"])
        there = self.get(record["key"])
        kept = ("newer", "done") if record["status"] == "failed" else ("newer",)
        if there is None or there["status"] not in kept:
            write_json(path, record)
        return path

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every record that can be read, in the order of their keys."""
        for path in sorted((self.root / "records").glob("??/*.json")):
            if (record := self._read(path)) is not None:
                yield record

    def keys(self) -> set[str]:
        """Return the keys of all records, read or not."""
        return {path.stem for path in (self.root / "records").glob("??/*.json")}

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = int(record["version"])
            if version > RECORD_VERSION:
                return {"version": version, "status": "newer", "key": path.stem}
            fits = (
                record["key"] == path.stem
                and isinstance(record["run"], dict)
                and (
                    record["status"] == "failed"
                    or (record["status"] == "done" and math.isfinite(record["seconds"]["total"]))
                )
            )
            why = "it is no whole record of its name"
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            fits, why = False, f"{type(error).__name__}: {error}"
        if fits:
            return dict(record)
        aside = path.with_name(f"{path.name}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another sweep moved it
            path.replace(aside)
        warnings.warn(
            f"the record {path.name} cannot be read ({why}); it was moved to {aside.name} and its "
            "run counts as not done",
            DamagedRecordWarning,
            stacklevel=3,
        )
        return None

    # Victims

    def victim(self, key: str) -> Path | None:
        """Return the bundle of ``key``, the store's own or a shelf's; None if there is none.

        Raises:
            OSError: its card is there, but the disk does not give it.
        """
        own = self.victim_place(key)
        # Read once: a grid asks for the same victims for every run.
        known = key in self._readable
        if (own / "card.json").is_file() if known else _card(own) is not None:
            self._readable.add(key)
            return own
        if self._shelved is None:
            self._shelved = _cards(self.shelves)
        return self._shelved.get(key)

    def victim_place(self, key: str) -> Path:
        """Return where the store puts the bundle of ``key``."""
        return self.root / "victims" / key

    def cards(self) -> Iterator[dict[str, Any]]:
        """Yield the cards of the store's own bundles, those that can be read."""
        for place in sorted((self.root / "victims").glob("[!.]*")):
            if (card := _card(place)) is not None:
                yield card

    def lease(self, name: str) -> Lease | None:
        """Take the lease called ``name``; None if somebody alive holds it."""
        return Lease.claim(self.root / "leases" / name)


def _holds_more(root: Path) -> bool:
    """Whether there is more at ``root`` than what a start leaves that was killed at once."""
    if not root.is_dir():
        return root.exists()
    # Killed before it was described, a store has its leases' directory alone.
    return any(one.name != "leases" for one in root.iterdir())


def _card(bundle: Path) -> dict[str, Any] | None:
    """Return a bundle's card; None if it has none, or one that is no JSON object."""
    try:
        said = json.loads((bundle / "card.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _cards(shelves: tuple[Path, ...]) -> dict[str, Path]:
    found = {}
    for shelf in shelves:
        for path in sorted(shelf.glob("**/card.json")):
            # A bundle that is being written, or that a killed sweep left, lies under such a name.
            if any(part.startswith(".") for part in path.relative_to(shelf).parts):
                continue
            try:
                card = _card(path.parent)
            except OSError:
                continue
            if card is not None and isinstance(card.get("key"), str):
                found[card["key"]] = path.parent
    return found
