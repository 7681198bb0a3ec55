"""A lease: who works on something, on a file system that several processes or machines share.

A lease is a file whose age says whether its holder lives: the holder touches it every few seconds.
Nobody's correctness hangs on it, since everything is written whole and the same work gives the
same result; it only keeps two workers from doing the same work at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

__all__ = ["Lease"]

#: Seconds between a holder's signs of life, and after how long without one it counts as dead.
BEAT, STALE = 5.0, 60.0


class Lease:
    """Held while its block runs; :meth:`claim` takes it.

    What the store's file system must offer: creating a file only if it does not exist, renaming
    within a directory, and modification times that all machines see within a minute.
    """

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self._done = threading.Event()
        self._beat = threading.Thread(target=self._keep, daemon=True)

    @classmethod
    def claim(cls, path: Path) -> Lease | None:
        """Take the lease at ``path``, or return None if somebody alive holds it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        owner = uuid.uuid4().hex
        said = json.dumps({"owner": owner, "host": socket.gethostname(), "pid": os.getpid()})
        for _ in range(2):
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(said)
            except FileExistsError:
                if not cls._is_dead(path):
                    return None
                # Only one of those who find it dead can rename it.
                with contextlib.suppress(OSError):
                    gone = path.with_name(f".{path.name}.{owner}")
                    path.rename(gone)
                    gone.unlink()
            else:
                return cls(path, owner)
        return None

    @staticmethod
    def _is_dead(path: Path) -> bool:
        try:
            age = time.time() - path.stat().st_mtime
            said = json.loads(path.read_text(encoding="utf-8"))
            if said["host"] == socket.gethostname():
                os.kill(int(said["pid"]), 0)
        except ProcessLookupError:
            return True
        except (OSError, ValueError, KeyError, TypeError):
            # Unreadable: just being written, or its writer died in the middle. Age decides.
            with contextlib.suppress(OSError):
                return time.time() - path.stat().st_mtime > STALE
            return False
        return age > STALE

    def __enter__(self) -> Lease:
        self._beat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._beat.join()
        # Somebody may have taken it over from us while we were stopped: theirs stays.
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(self.path.read_text(encoding="utf-8"))["owner"] == self.owner:
                self.path.unlink()

    def _keep(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)
