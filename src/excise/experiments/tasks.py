"""What a worker does for a sweep: plant a shared victim, or repair one and make its record.

A task is plain JSON, so that it crosses to another process or machine; what comes back is too.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from excise.attacks import load_victim
from excise.data import defender_data
from excise.evaluation import Evaluation
from excise.experiments.environment import environment
from excise.experiments.plant import plant, pool_of
from excise.experiments.repair import Question, run_repair
from excise.experiments.runs import Run, assemble
from excise.experiments.store import RECORD_VERSION, Store
from excise.models import load_model
from excise.seeding import Rng
from excise.types import Row

__all__ = ["Task", "failure", "perform"]

#: Seconds between looks at a victim that another worker is planting.
_POLL = 1.0
_KEPT = 32
#: What the victims measured last by this process do, and their twins.
_MEASURED: dict[str, tuple[Evaluation, Evaluation | None]] = {}
#: An absolute path: between quotes, where it may hold spaces, or bare; no part of a URL.
_PATH = re.compile(
    r"""(?<=(?P<quote>["']))(?P<quoted>/[^"'\n]+)(?=(?P=quote))"""
    r"""|(?:(?<![\w.~/…])|(?<=file://))(?P<bare>/(?!/)[^\s"'`(),;:<>\[\]]+)"""
)


@dataclass(frozen=True)
class Task:
    """A piece of work for one worker.

    Args:
        kind: plant a twin or a victim, or do a run.
        key: of what comes out of it.
        spec: of the run it belongs to.
        after: keys of the tasks that must be done before.
        words: what it is, for a person.
    """

    kind: Literal["twin", "victim", "run"]
    key: str
    spec: Mapping[str, Any]
    after: tuple[str, ...] = ()
    words: str = ""


def perform(
    task: Task, store: Store, device: str, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Do a task; return a run's record, which is in the store, or what a victim measured.

    Args:
        task: what to do.
        store: where victims lie and records go.
        device: where to work.
        say: called now and then with how far it is.
    """
    run = Run(task.spec)
    if task.kind == "run":
        return _once(run, store, device, say)
    return _plant(run, task.key, task.kind == "twin", store, device, say)


def _plant(
    run: Run, key: str, twin: bool, store: Store, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    place = store.victim_place(key)
    start = time.perf_counter()
    while store.victim(key) is None:
        lease = store.lease(f"victim-{key}")
        if lease is None:
            say("waiting for another worker that plants it")
            time.sleep(_POLL)
            continue
        with lease:
            if store.victim(key) is not None:  # done since we looked
                break
            if place.exists():  # half of a bundle, or one whose card cannot be read
                aside = place.with_name(f"{key}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                place.replace(aside)
            surrogate = None
            if run.needs_surrogate and not twin:
                surrogate = load_model(_bundle(run, True, store, device, say)).to(device)
            card = plant(
                run.planting(twin=twin), run.data(), place,
                device=device, half=bool(run.spec["half"]), surrogate=surrogate,
                described={"key": key}, on_round=lambda row: say(_progress(row)),
            )  # fmt: skip
            return {
                "key": key,
                "measured": card["measured"],
                "seconds": time.perf_counter() - start,
            }
    return {"key": key, "measured": None, "seconds": 0.0}


def _bundle(run: Run, twin: bool, store: Store, device: str, say: Callable[[str], None]) -> Path:
    """Return a run's victim or twin; planted here if this node has none yet."""
    key = run.victim_key(twin=twin)
    _plant(run, key, twin, store, device, say)
    bundle = store.victim(key)
    assert bundle is not None
    return bundle


def _once(run: Run, store: Store, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Do a run unless another sweep on the same store did it, or is doing it."""
    while True:
        there = store.get(run.key)
        if there is not None and there["status"] == "done":
            return there
        lease = store.lease(f"run-{run.key}")
        if lease is not None:
            with lease:
                record = _repair(run, store, device, say)
                store.put(record)
                return record
        say("waiting for another worker that does it")
        time.sleep(_POLL)


def _repair(run: Run, store: Store, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    twin = None
    if run.spec["twin"]:
        twin = load_model(_bundle(run, True, store, device, say)).to(device)
    victim, card = load_victim(_bundle(run, False, store, device, say))
    spec, seed, data = run.spec, int(run.spec["seed"]), run.data()
    pool = pool_of(data.train, seed, spec["victim_images"]).pool
    sample = defender_data(
        pool,
        spc=spec["spc"],
        rng=Rng(seed).child("sample"),
        validation_ratio=spec["validation_ratio"],
        paper_split=spec["paper_split"],
        pool=f"{spec['data']}: training images the victim never saw",
    )
    trigger = victim.backdoor.trigger if victim.backdoor else None
    planted = (card.get("measured") or {}).get("asr") or {}
    question = Question(
        model=victim.model.to(device),
        method=assemble("defense", spec["defense"], trigger),
        data=sample.to(device),
        seed=seed,
        test=data.test,
        backdoor=victim.backdoor,
        twin=twin,
        planted_asr=planted.get("value"),
        described={
            "spc": spec["spc"],
            "source": spec["data"],
            "model": {
                "arch": spec["model"], "attack": spec["attack"], "victim_seed": seed,
                "victim_key": run.victim_key(),
            },
        },
        curve_images=0,
    )  # fmt: skip
    # Every defense of a grid starts from the same victims: what they do is measured once.
    key = f"{run.victim_key()} {run.spec['twin']} {device}"
    if key not in _MEASURED:
        assert data.test is not None  # or the victim could not have been planted
        test = data.test.to(device)
        if len(_MEASURED) >= _KEPT:
            del _MEASURED[next(iter(_MEASURED))]
        _MEASURED[key] = (
            question.measure(question.model, test),
            question.measure(twin, test) if twin is not None else None,
        )
    before, floor = _MEASURED[key]
    question = replace(question, before=before, floor=floor)
    outcome = run_repair(question, on_round=lambda row: say(_progress(row)))
    return {
        **outcome.record,
        "version": RECORD_VERSION,
        "key": run.key,
        "status": "done",
        "run": dict(spec),
    }


def failure(task: Task, error: str, trace: str) -> dict[str, Any]:
    """Return the record of a run that failed.

    Args:
        task: the run.
        error: one line.
        trace: the traceback, or whatever is known.
    """
    return {
        "version": RECORD_VERSION,
        "kind": "failure",
        "key": task.key,
        "status": "failed",
        "run": dict(task.spec),
        "error": without_paths(error),
        "traceback": without_paths(trace),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        # Who writes this is not who did the work, and did not see where.
        "environment": {**environment(torch.device("cpu")), "device": "not recorded"},
    }


def described_error(error: BaseException) -> tuple[str, str]:
    """Return an error as one line, and its traceback without paths of this machine."""
    trace = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}", without_paths(trace)


def without_paths(text: str) -> str:
    """Return a text whose absolute paths begin at the package, or are the file's name alone."""
    return _PATH.sub(lambda found: _shortened(found["quoted"] or found["bare"]), text)


def _shortened(path: str) -> str:
    # The longest root is the nearest: a checkout may hold its environment.
    for root in sorted([str(Path(__file__).parents[2]), *sys.path], key=len, reverse=True):
        if len(Path(root).parts) > 1 and Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    return Path(path).name


def _progress(row: Row) -> str:
    if "epoch" in row:
        of = f" of {row['epochs']}" if "epochs" in row else ""
        return f"{row.get('stage', '')} epoch {row['epoch']}{of}"
    return f"{row.get('stage', '')} round {row.get('round', '')}"
