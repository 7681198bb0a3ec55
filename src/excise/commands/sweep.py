"""``excise sweep``: a grid of runs that survives interruption and remembers every result."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from excise.commands.options import device_named, flags
from excise.errors import DataError, SpecError
from excise.experiments.engines.local import Engine, Event, Inline, Local
from excise.experiments.grid import read_grid
from excise.experiments.logging import Log, check_log, open_log
from excise.experiments.store import Store
from excise.experiments.sweep import Plan, plan_sweep, run_sweep
from excise.machine import physical_memory, usable_cores

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run a grid: data × network × attack × defense × SPC × seed, from a TOML file.

    What is finished is kept: interrupted by anything and started again, the sweep goes on.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The sweep's TOML file (docs/sweeps.md)."""
    store: Path | None = None
    """Directory of records and victims; default: the file's name without its ending."""
    victims: tuple[Path, ...] = ()
    """Directories with bundles made before; those whose key fits are used where they are."""
    dry_run: bool = False
    """Only say how many runs there are, how many are done, and how long the rest may take."""
    engine: Literal["local", "inline", "ray"] = "local"
    """local: processes on this machine; inline: this process; ray: a Ray cluster."""
    address: str | None = None
    """Address of the Ray cluster; default: one started on this machine."""
    workers: int | None = None
    """Worker processes; default: one a GPU, or one a core and 3 GB of memory."""
    gpu_share: float = 0.0
    """Share of a GPU that one run takes on a Ray cluster, such as 0.25; 0: the CPU."""
    scratch: Path | None = None
    """With Ray and a store that not all nodes see: a directory on each node for victims."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    retry_failed: bool = False
    """Try runs again that failed before."""
    log: str | None = None
    """Also log every run as it finishes: tensorboard:DIR or mlflow:URI (docs/sweeps.md)."""
    json: bool = False
    """Print the plan and the outcome as JSON."""


def run(arguments: list[str]) -> int:
    """Run a sweep; 0 if every run is done, 1 if some failed or are still to do."""
    asked = flags(Sweep, arguments, "sweep", file=tyro.MISSING)
    console = Console(stderr=True, highlight=False)
    grid = read_grid(asked.file)
    engine = _engine(asked)
    for shelf in asked.victims:
        if not shelf.is_dir():
            raise DataError(
                "a directory with bundles",
                got=str(shelf),
                remedy="Give --victims what excise plant or a sweep wrote, or leave it out.",
            )
    place = asked.store or asked.file.with_suffix("")
    store = Store(place, asked.victims, make=not asked.dry_run)
    plan = plan_sweep(grid, store, retry_failed=asked.retry_failed)
    workers = getattr(engine, "workers", 1)
    said = _plan_words(plan, workers)
    if asked.dry_run:
        if asked.log is not None:
            check_log(asked.log)
        print(json.dumps(_plan_json(plan, workers), indent=2) if asked.json else said)
        return 0
    console.print(said, markup=False)
    started = time.monotonic()
    with (
        _Progress(console, plan, workers) as progress,
        open_log(asked.log, progress.note) as log,
    ):
        try:
            finished, failed = run_sweep(plan, store, engine, _both(progress, log))
        except KeyboardInterrupt:
            progress.note(
                f"stopped; {plan.done + progress.finished} of {plan.runs} runs are done and kept. "
                "Start it again to go on."
            )
            return 130
    lost = plan.count("run") - finished - failed
    failed += plan.failed
    outcome = {
        "runs": plan.runs, "done": plan.done + finished, "failed": failed, "to_do": lost,
        "seconds": time.monotonic() - started, "store": str(store.root),
    }  # fmt: skip
    if asked.json:
        print(json.dumps(outcome, indent=2))
    else:
        print(f"{outcome['done']} of {plan.runs} runs are done, {failed} failed: {store.root}")
        if failed:
            print("What failed and why stands in the records; --retry-failed tries again.")
        if lost:
            print(
                f"{lost:,} still to do: the worker that planted what they need died each time. "
                "Start the sweep again to go on."
            )
    return 1 if failed or lost else 0


def _both(progress: _Progress, log: Log) -> Callable[[Event], None]:
    """Return what takes up an event: shown, and logged if it is a finished run."""

    def take(event: Event) -> None:
        progress.show(event)
        if event.task.kind == "run" and event.kind == "done":
            run = f"{event.task.words} · {event.task.key[:8]}"
            log.finished(run, event.task.spec, event.result)

    return take


def _engine(asked: Sweep) -> Engine:
    if asked.engine == "ray":
        from excise.experiments.engines.ray import OnRay

        if not 0 <= asked.gpu_share <= 1:
            raise SpecError(
                "a share of a GPU from 0 to 1",
                got=str(asked.gpu_share),
                remedy="0.25 lets four runs share one.",
            )
        return OnRay(address=asked.address, gpu_share=asked.gpu_share, scratch=asked.scratch)
    devices = _devices(asked.device)
    if asked.engine == "inline":
        return Inline(devices[0])
    if asked.workers is not None and asked.workers < 1:
        raise SpecError("at least one worker", got=str(asked.workers), remedy="Leave it out.")
    return Local(asked.workers or _usual_workers(devices), devices)


def _devices(name: str) -> tuple[str, ...]:
    if name != "auto":
        return (str(device_named(name)),)
    if torch.cuda.is_available():
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    return ("cpu",)


def _usual_workers(devices: Sequence[str]) -> int:
    if devices[0] != "cpu":
        return len(devices)
    cores, memory = usable_cores(), physical_memory()
    return cores if memory is None else max(1, min(cores, memory // 3_000_000_000))


def _plan_words(plan: Plan, workers: int) -> str:
    left = plan.count("run")
    lines = [
        f"{plan.runs:,} runs: {plan.done:,} done, {plan.failed:,} failed before, {left:,} to do",
        f"{plan.count('victim'):,} victims and {plan.count('twin'):,} clean twins to plant first",
    ]
    if left and plan.seconds is not None:
        rest = f"; {plan.unjudged:,} tasks like none done yet not counted" if plan.unjudged else ""
        lines.append(f"about {_duration(plan.seconds / workers)} on {workers} workers{rest}")
    elif left:
        lines.append("no estimate: nothing like these was done in this store yet")
    return "\n".join(lines)


def _plan_json(plan: Plan, workers: int) -> dict[str, Any]:
    return {
        "runs": plan.runs,
        "done": plan.done,
        "failed": plan.failed,
        "to_do": plan.count("run"),
        "victims_to_plant": plan.count("victim"),
        "twins_to_plant": plan.count("twin"),
        "seconds": plan.seconds / workers if plan.seconds is not None else None,
        "tasks_without_estimate": plan.unjudged,
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class _Progress:
    """Shows a sweep: a live view on a terminal, a line for every finished task else."""

    def __init__(self, console: Console, plan: Plan, workers: int) -> None:
        self.console, self.plan, self.workers = console, plan, workers
        self.finished = self.failed = self._tasks = 0
        self._started = time.monotonic()
        self._doing: dict[str, str] = {}
        self._newest: deque[str] = deque(maxlen=6)
        self._bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        )
        self._row = self._bar.add_task("", total=plan.count("run"), left="")
        self._live: Live | None = None

    def __enter__(self) -> _Progress:
        if self.console.is_terminal:
            self._live = Live(self._view(), console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self._view())
            self._live.stop()

    def note(self, text: str) -> None:
        """Say something below the view."""
        self.console.print(text, markup=False)

    def show(self, event: Event) -> None:
        """Take up an event."""
        key, words = event.task.key, event.task.words
        if event.kind in ("started", "said"):
            self._doing[key] = f"{words}: {event.text}" if event.text else words
        else:
            self._doing.pop(key, None)
            self._tasks += 1
            line = f"{words}: {_outcome(event)}"
            self._newest.append(line)
            if event.task.kind == "run":
                self.finished += event.kind == "done"
                self.failed += event.kind == "failed"
            if self._live is None:
                done = f"[{self.finished + self.failed}/{self.plan.count('run')}]"
                self.console.print(f"{done} {line}", markup=False)
        if self._live is not None:
            self._live.update(self._view())

    def _view(self) -> Group:
        self._bar.update(self._row, completed=self.finished + self.failed, left=self._left())
        table = Table.grid(padding=(0, 1))
        for text in self._doing.values():
            table.add_row(Text("…"), Text(text, overflow="ellipsis", no_wrap=True))
        for text in self._newest:
            table.add_row(Text("✓"), Text(text, overflow="ellipsis", no_wrap=True))
        return Group(self._bar, table)

    def _left(self) -> str:
        failed = f"{self.failed} failed · " if self.failed else ""
        if not self._tasks:
            return failed
        rate = (time.monotonic() - self._started) / self._tasks
        return f"{failed}about {_duration(rate * (len(self.plan.tasks) - self._tasks))} left"


def _outcome(event: Event) -> str:
    if event.kind in ("failed", "lost"):
        return f"{event.kind}: {event.text}"
    result = event.result
    figures = (result.get("after") if event.task.kind == "run" else result.get("measured")) or {}
    said = [
        f"{name.upper()} {figures[name]['value']:.1%}"
        for name in ("acc", "asr", "ra")
        if figures.get(name) and figures[name]["value"] is not None
    ]
    return " ".join(said) or "there already"
