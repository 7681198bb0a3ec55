"""The local engine: processes that share one machine without fighting for cores or memory.

Every worker is a process of its own with a fixed share of the cores and, where there are GPUs, one
of them. A worker that dies (killed, out of memory) costs its own run only; another takes its place.
What it was planting for others is started again; if every try ends so, the runs that need it are
left for the next start. If the sweep itself dies, its workers see that and stop.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from excise.experiments.tasks import Task, described_error, perform
from excise.machine import usable_cores

__all__ = ["Engine", "Event", "Inline", "Local", "Schedule"]

#: Errors of the store's disk, after which no further run can be kept: the sweep stops.
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

#: How often a planting is started again after its process was lost; on Ray also a run.
RETRIES = 3


@dataclass(frozen=True)
class Event:
    """What became of a task, or how far it is.

    Args:
        kind: it started, said something, is done, failed, found that the store's disk cannot be
            written to any more, or was lost: whoever planted it died every time, or what it needs
            was lost. A lost task is still to do.
        task: which.
        text: what it said; for a failed or lost one the error in one line.
        result: what it gave, if it is done; for a failure the traceback.
    """

    kind: Literal["started", "said", "done", "failed", "stopped", "lost"]
    task: Task
    text: str = ""
    result: Any = None


class Engine(Protocol):
    """Runs tasks, each after those it needs, and tells of them as they go."""

    def run(self, tasks: Sequence[Task], store: Path, shelves: Sequence[Path]) -> Iterator[Event]:
        """Yield events until every task is done, failed or lost; closing the iterator stops all."""
        ...


class Schedule:
    """Which tasks may start: those whose needs are done. A task falls with what it needs."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.waiting = list(tasks)
        self._open = {task.key for task in tasks}
        self._fallen: dict[str, Event] = {}

    def next(self) -> Task | None:
        """Return a task that may start, or None if none may now."""
        for number, task in enumerate(self.waiting):
            if not any(key in self._open for key in task.after):
                return self.waiting.pop(number)
        return None

    def again(self, task: Task) -> None:
        """Let a task that started start once more, before the others."""
        self.waiting.insert(0, task)

    def fall(self, task: Task) -> Event | None:
        """Return the event of a task that falls with what it needs; None if all of that is done."""
        need = next((self._fallen[key] for key in task.after if key in self._fallen), None)
        return None if need is None else Event(need.kind, task, need.text, "")

    def close(self, event: Event) -> None:
        """Note that a task is done, failed or lost."""
        self._open.discard(event.task.key)
        if event.kind != "done":
            self._fallen[event.task.key] = event


@dataclass
class Inline:
    """Runs every task in this process, one after the other: for a debugger, and for tests.

    Args:
        device: where to work.
    """

    device: str = "cpu"

    def run(self, tasks: Sequence[Task], store: Path, shelves: Sequence[Path]) -> Iterator[Event]:
        """Yield what becomes of each task."""
        from excise.experiments.store import Store

        schedule, opened = Schedule(tasks), Store(store, tuple(shelves))
        while (task := schedule.next()) is not None:
            yield Event("started", task)
            event = schedule.fall(task)
            if event is None:
                try:
                    event = Event("done", task, result=perform(task, opened, self.device))
                except Exception as error:
                    kind, line, trace = outcome_of(error)
                    if kind == "stopped":
                        raise
                    event = Event(kind, task, line, trace)
            schedule.close(event)
            yield event


@dataclass
class Local:
    """Runs tasks in worker processes.

    Args:
        workers: how many; the cores are shared out evenly among them.
        devices: one name a worker is given in turn, such as ``("cuda:0", "cuda:1")``.
        cores: how many cores to share; None: all this process may use.
    """

    workers: int
    devices: Sequence[str] = ("cpu",)
    cores: int | None = None
    _crew: list[_Worker] = field(default_factory=list, init=False)

    def run(self, tasks: Sequence[Task], store: Path, shelves: Sequence[Path]) -> Iterator[Event]:
        """Yield what becomes of the tasks, as it happens."""
        cores = self.cores or usable_cores()
        threads = max(1, cores // self.workers)
        schedule = Schedule(tasks)
        retried: Counter[str] = Counter()
        count = min(self.workers, len(tasks))

        def hire(number: int) -> _Worker:
            sharing = -(-count // len(self.devices))
            device = self.devices[number % len(self.devices)]
            return _Worker(number, store, tuple(shelves), device, threads, sharing)

        try:
            self._crew = [hire(number) for number in range(count)]
            while True:
                yield from self._hand_out(schedule)
                busy = [worker for worker in self._crew if worker.task is not None]
                if not busy:
                    return
                ready = wait([worker.pipe for worker in busy])
                for worker in busy:
                    if worker.pipe not in ready:
                        continue
                    event = worker.hear()
                    if event.kind == "stopped":
                        raise OSError(errno.ENOSPC, event.text)
                    if event.kind == "lost" and retried[event.task.key] < RETRIES:
                        retried[event.task.key] += 1
                        schedule.again(event.task)
                        event = Event("said", event.task, f"{event.text}; it is started again")
                    elif event.kind != "said":
                        schedule.close(event)
                    if not worker.process.is_alive():
                        self._crew[self._crew.index(worker)] = hire(worker.number)
                    yield event
        finally:
            for worker in self._crew:
                worker.stop()
            self._crew = []

    def _hand_out(self, schedule: Schedule) -> Iterator[Event]:
        for worker in self._crew:
            while worker.task is None and (task := schedule.next()) is not None:
                if (event := schedule.fall(task)) is not None:
                    schedule.close(event)
                    yield event
                    continue
                worker.give(task)
                yield Event("started", task)


class _Worker:
    """A process, the pipe to it, and the task it has."""

    def __init__(
        self,
        number: int,
        store: Path,
        shelves: tuple[Path, ...],
        device: str,
        threads: int,
        sharing: int,
    ) -> None:
        self.number = number
        self.task: Task | None = None
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, store, shelves, device, threads, sharing), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        # A worker that is already dead is found when it is listened to.
        with contextlib.suppress(OSError):
            self.pipe.send(task)

    def hear(self) -> Event:
        assert self.task is not None
        task = self.task
        try:
            kind, text, result = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.task = None
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            # No other task hangs on a run.
            ended: Literal["failed", "lost"] = "failed" if task.kind == "run" else "lost"
            return Event(ended, task, f"the worker died with {how}{hint}", "")
        if kind != "said":
            self.task = None
        return Event(kind, task, text, result)

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()


def _work(
    pipe: Connection,
    store: Path,
    shelves: tuple[Path, ...],
    device: str,
    threads: int,
    sharing: int,
) -> None:
    """Do tasks as they come, until the sweep closes the pipe or dies."""
    # Ctrl-C reaches the whole group; the sweep decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    from excise.experiments.store import Store

    # Fewer if the person said so (OMP_NUM_THREADS): threads that wait for a busy core spin.
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    share_memory(device, sharing)
    opened = Store(store, shelves)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        last = 0.0

        def say(text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                pipe.send(("said", text, None))

        try:
            result = perform(task, opened, device, say)
        except Exception as error:
            pipe.send(outcome_of(error))
        else:
            pipe.send(("done", "", result))


def outcome_of(error: Exception) -> tuple[Literal["stopped", "failed"], str, str]:
    """Return the kind, text and result of the event that tells of an error in a worker."""
    fatal = isinstance(error, OSError) and error.errno in FATAL
    return "stopped" if fatal else "failed", *described_error(error)


def share_memory(device: str, sharing: int) -> None:
    """Leave this process its part of a GPU's memory, if others work on it too."""
    import torch

    if device.startswith("cuda") and sharing > 1:
        # "cuda" alone has no number, which torch asks for.
        torch.cuda.set_per_process_memory_fraction(1 / sharing, torch.device(device).index or 0)


def _die_with(parent: int) -> None:
    """End this process once its parent is gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
