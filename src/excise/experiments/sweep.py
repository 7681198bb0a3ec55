"""A sweep: what is left to do of a grid, and doing it."""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from excise.experiments.engines.local import Engine, Event
from excise.experiments.grid import Grid
from excise.experiments.runs import Run, check_against_data
from excise.experiments.store import Store
from excise.experiments.tasks import Task, failure

__all__ = ["Plan", "plan_sweep", "run_sweep"]

#: Settings of a run that its data may not allow.
_FITTED = (
    "data", "image_size", "limit", "model", "attack",
    "victim_images", "spc", "validation_ratio", "paper_split",
)  # fmt: skip

#: What a record or card that somebody edited may raise; nothing is judged by it then.
_ODD = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Plan:
    """What a sweep has done and has to do.

    Args:
        runs: how many runs the grid has.
        done: how many have a record.
        failed: how many have the record of a failure and are not to be tried again.
        tasks: what is left: twins, victims, runs, each after what it needs.
        seconds: an estimate of the work left, on one worker; None without anything to judge by.
        unjudged: how many tasks the estimate leaves out, since nothing like them was done yet.
    """

    runs: int
    done: int
    failed: int
    tasks: tuple[Task, ...]
    seconds: float | None
    unjudged: int

    def count(self, kind: str) -> int:
        """Return how many tasks of a kind are left."""
        return sum(task.kind == kind for task in self.tasks)


def plan_sweep(grid: Grid, store: Store, *, retry_failed: bool = False) -> Plan:
    """Return what is left of ``grid`` in ``store``.

    Args:
        grid: all its runs; each is checked against its data before anything runs.
        store: records and victims that there are.
        retry_failed: whether runs that failed before are tried again.

    Raises:
        InputError: a run that does not fit its data.
    """
    checked: set[str] = set()
    tasks: dict[str, Task] = {}
    done = failed = 0
    seen: set[str] = set()
    for run in grid.runs:
        # Only what differs in one of these can fit differently.
        said = json.dumps([run.spec[k] for k in _FITTED])
        if said not in checked:
            check_against_data(run)
            checked.add(said)
        if run.key in seen:
            continue
        seen.add(run.key)
        there = store.get(run.key)
        if there is not None and there["status"] != "failed":
            done += 1
        elif there is not None and not retry_failed:
            failed += 1
        else:
            for task in _tasks(run, store):
                tasks.setdefault(task.key, task)
    seconds, unjudged = _estimate(tasks.values(), store)
    return Plan(len(seen), done, failed, tuple(tasks.values()), seconds, unjudged)


def run_sweep(
    plan: Plan, store: Store, engine: Engine, on_event: Callable[[Event], None]
) -> tuple[int, int]:
    """Do what is left; return how many runs were finished, and how many failed.

    A failed run leaves a record with its traceback and does not stop the others. A lost one (what
    it needs could not be planted, since whoever did died every time) leaves none and is still to
    do. However the sweep ends, what was finished stays, and started again it goes on.

    Raises:
        OSError: the store's disk is full or cannot be written to.
    """
    finished = failed = 0
    events = engine.run(plan.tasks, store.root, store.shelves)
    try:
        for event in events:
            if event.task.kind == "run" and event.kind == "done":
                finished += 1
            elif event.task.kind == "run" and event.kind == "failed":
                failed += 1
                store.put(failure(event.task, event.text, str(event.result or "")))
            on_event(event)
    finally:
        # Stops the workers now, not when the generator happens to be collected.
        getattr(events, "close", lambda: None)()
    return finished, failed


def _tasks(run: Run, store: Store) -> Iterable[Task]:
    spec, words = run.spec, run.words()
    after = []
    network = f"{spec['data']} · {spec['model']} · seed {spec['seed']}"
    if run.needs_twin:
        twin = run.victim_key(twin=True)
        if store.victim(twin) is None:
            after.append(twin)
            yield Task("twin", twin, spec, (), f"clean twin · {network}")
    victim = run.victim_key()
    if store.victim(victim) is None and victim not in after:
        needs = tuple(after) if run.needs_surrogate else ()
        yield Task("victim", victim, spec, needs, f"{spec['attack']['name']} victim · {network}")
        after.append(victim)
    yield Task("run", run.key, spec, tuple(after), words)


def _estimate(tasks: Iterable[Task], store: Store) -> tuple[float | None, int]:
    """Return seconds of work left, from what like tasks took, and how many have no like."""
    took: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in store.records():
        if record["status"] == "done":
            with contextlib.suppress(*_ODD):
                took[_like(record["run"], "run")].append(float(record["seconds"]["total"]))
    for card in store.cards():
        with contextlib.suppress(*_ODD):
            made, seconds = card["made"], float(card["seconds"])
            if math.isfinite(seconds):
                took[_planted_like(made, made["arch"])].append(seconds)
    total, unjudged, judged = 0.0, 0, False
    for task in tasks:
        if task.kind == "run":
            like = _like(task.spec, "run")
        else:
            attack = {"name": "none"} if task.kind == "twin" else task.spec["attack"]
            made = {"attack": attack, "recipe": task.spec["recipe"]}
            like = _planted_like(made, task.spec["model"])
        if like in took:
            total, judged = total + median(took[like]), True
        else:
            unjudged += 1
    return (total if judged else None), unjudged


def _like(spec: Any, kind: str) -> tuple[Any, ...]:
    return kind, spec["data"], spec["model"], spec["defense"]["name"], spec["spc"]


def _planted_like(made: Any, arch: Any) -> tuple[Any, ...]:
    epochs = (made.get("recipe") or {}).get("epochs")
    return "planted", arch, (made.get("attack") or {}).get("name"), epochs
