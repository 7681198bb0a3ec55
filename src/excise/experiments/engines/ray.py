"""The Ray engine: the same tasks on a cluster, with retries when a node is lost.

Every node needs the same Excise and the same data under the same names. Records come back to the
one who started the sweep and go into that store. Victims lie in the store if all nodes see it
(shared storage), else each node plants those it needs in a directory of its own (``scratch``).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.errors import SpecError
from excise.experiments.engines.local import RETRIES, Event, outcome_of
from excise.experiments.store import Store
from excise.experiments.tasks import Task, described_error, perform

__all__ = ["OnRay"]


@dataclass
class OnRay:
    """Runs tasks on a Ray cluster.

    Args:
        address: of the cluster, ``"auto"`` for the one this machine belongs to; None starts one on
            this machine.
        cpus: cores one task takes.
        gpu_share: share of a GPU one task takes; 0: it works on the CPU.
        scratch: directory on every node for victims, where the store is not on shared storage.
    """

    address: str | None = None
    cpus: int = 1
    gpu_share: float = 0.0
    scratch: Path | None = None

    @property
    def workers(self) -> int:
        """How many tasks the cluster does at a time, as far as its cores and GPUs tell."""
        ray = self._connected()
        there = ray.cluster_resources()
        fits = int(there.get("CPU", 1)) // self.cpus
        if self.gpu_share > 0:
            fits = min(fits, int(there.get("GPU", 0) / self.gpu_share))
        return max(1, fits)

    def _connected(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise SpecError(
                "Ray, for --engine ray",
                got="none installed",
                remedy="Install it: pip install 'excise[ray]'.",
            ) from error
        if not ray.is_initialized():
            try:
                _knock(self.address)
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
            except (OSError, ValueError) as error:
                raise SpecError(
                    "the address of a running Ray cluster",
                    got=f"{self.address!r} ({str(error).splitlines()[0]})",
                    remedy="Start one with `ray start --head`, or leave --address out.",
                ) from error
        return ray

    def run(self, tasks: Sequence[Task], store: Path, shelves: Sequence[Path]) -> Iterator[Event]:
        """Yield what becomes of the tasks, as it happens.

        Raises:
            SpecError: Ray is not installed, or there is no cluster at the address.
            OSError: the store, or a node's ``scratch``, cannot be written to.
        """
        ray = self._connected()
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpu_share, max_retries=RETRIES)(_do)
        opened = Store(store, tuple(shelves))
        place = str((self.scratch or store).absolute())
        options = (place, [str(shelf.absolute()) for shelf in shelves], self.cpus)
        device = "cuda" if self.gpu_share > 0 else "cpu"
        results: dict[str, Any] = {}
        for task in tasks:  # each comes after what it needs
            needs = [results[key] for key in task.after if key in results]
            results[task.key] = remote.remote(task, device, *options, *needs)
            yield Event("started", task)
        waiting = {results[task.key]: task for task in tasks}
        try:
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                task = waiting.pop(ready[0])
                needs = [results[key] for key in task.after if key in results]
                event = _event(ray, task, ready[0], needs)
                if event.kind == "stopped":
                    raise OSError(errno.ENOSPC, event.text)
                if event.kind == "done" and task.kind == "run":
                    opened.put(event.result)
                yield event
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _knock(address: str | None) -> None:
    """Raise OSError if nobody listens at ``host:port``, for which Ray would wait for ever."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def _event(ray: Any, task: Task, reference: Any, needs: Sequence[Any]) -> Event:
    try:
        kind, text, result = ray.get(reference)
    except ray.exceptions.RayError as error:  # lost more often than it is retried
        line, trace = described_error(error)
        # A run whose need was lost never started: it is not its failure.
        lost = task.kind != "run" or any(_is_lost(ray, need) for need in needs)
        return Event("lost" if lost else "failed", task, line.splitlines()[0], trace)
    return Event(kind, task, text, result)


def _is_lost(ray: Any, reference: Any) -> bool:
    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return True
    return False


def _do(
    task: Task, device: str, store: str, shelves: list[str], cpus: int, *needs: Any
) -> tuple[str, str, Any]:
    """Do a task on a node; what it needs are the outcomes of other tasks."""
    import torch

    torch.set_num_threads(cpus)
    for kind, text, _ in needs:
        if kind != "done":
            return kind, text, ""
    try:
        opened = Store(Path(store), tuple(Path(shelf) for shelf in shelves))
        return "done", "", perform(task, opened, device)
    except Exception as error:
        return outcome_of(error)
