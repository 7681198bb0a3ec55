"""How long each stage of a method took, for the record."""

from __future__ import annotations

import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """Wall-clock seconds of stages that follow one another; it runs from the start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Note the time since the last lap as that of ``stage``."""
        now = time.perf_counter()
        self.seconds[stage], self._since = now - self._since, now
