"""How the command line tells what is going on: one live line on a terminal, sparse lines else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from excise.types import Row

__all__ = ["Story"]

#: Seconds between lines where nobody watches a terminal (a log file, CI).
QUIET_SECONDS = 10.0

#: How a figure of a row is said; what is not here is not said.
_WORDS = {
    "loss": "loss {:.3f}",
    "accuracy": "validation accuracy {:.1%}",
    "unlearning_loss": "unlearning loss {:.3f}",
    "validation_loss": "validation loss {:.3f}",
}

#: What a row counts, the first of these that it has.
_COUNTED = ("epoch", "round", "step", "iteration")


class Story:
    """Shows stages and rounds on standard error; results go to standard output.

    Args:
        console: where to write; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._stage = ""
        self._last = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Story:
        if self.console.is_terminal:
            self._status = self.console.status("")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def stage(self, name: str) -> None:
        """Say that a stage begins; what stands in brackets is text, no markup."""
        self._stage = name = escape(name)
        self._last = time.monotonic()
        self.console.print(f"[dim]{time.monotonic() - self._start:5.0f} s[/]  {name}")
        if self._status is not None:
            self._status.update(name)

    def round(self, row: Row) -> None:
        """Say what a round brought: on a terminal always, else now and then."""
        said = " · ".join([escape(self._place(row)), *self._figures(row)])
        now = time.monotonic()
        if self._status is not None:
            self._status.update(f"{self._stage}: {said}")
        elif now - self._last >= QUIET_SECONDS:
            self._last = now
            self.console.print(f"[dim]{now - self._start:5.0f} s[/]  {self._stage}: {said}")

    @staticmethod
    def _place(row: Row) -> str:
        kind = next((kind for kind in _COUNTED if kind in row), None)
        where = f", {row['layer']} filter {row['index']}" if "layer" in row else ""
        of = f" of {row[f'{kind}s']}" if f"{kind}s" in row else ""
        number = f"{kind} {row[kind]}{of}{where}" if kind else ""
        return ", ".join(part for part in (str(row.get("stage", "")), number) if part)

    @staticmethod
    def _figures(row: Row) -> list[str]:
        return [
            words.format(value)
            for key, words in _WORDS.items()
            if isinstance(value := row.get(key), int | float)
        ]
