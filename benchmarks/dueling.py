"""What a duel of ``against_peers.py`` is: its two sides, what they are given, and their clocks."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from excise.types import Backdoor, DefenderData, Repair, Row

SPC = 10


class Timed(NamedTuple):
    """The work that is compared: how long it took, and what came out of it."""

    seconds: float
    cpu: float
    result: Any


@dataclass(frozen=True)
class Field:
    """The victim and the images both sides work on.

    Args:
        model: the victim, on [0, 1] images.
        data: the defender's images; a tenth of them held out.
        backdoor: the victim's own, for the one method that is told it, and for measuring.
        channels_last: whether the peer's network has our order of memory, too.
    """

    model: nn.Module
    data: DefenderData
    backdoor: Backdoor
    channels_last: bool

    def copied(self) -> nn.Module:
        """Return a copy of the victim for the peer."""
        import torch

        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return copy.deepcopy(self.model).to(memory_format=order)

    def body(self) -> nn.Module:
        """Return such a copy without its first layer: the peer normalizes in its loader.

        Layout, names and order of the modules are those of the peer's network of that name.
        """
        return self.copied().get_submodule("body")


def field_of(bundle: Path, *, channels_last: bool = False, spc: int = SPC) -> Field:
    from excise.attacks import load_victim
    from excise.data import defender_data, load_data
    from excise.experiments.plant import pool_of
    from excise.seeding import Rng

    victim, card = load_victim(bundle)
    made = card["made"]
    train = load_data(made["data"]["source"]).train
    pool = pool_of(train, made["seed"], made["data"]["victim_images"]).pool
    data = defender_data(pool, spc=spc, rng=Rng(0).child("sample"))
    assert victim.backdoor is not None
    return Field(victim.model, data, victim.backdoor, channels_last)


def now() -> tuple[float, float]:
    """Return what the clock says, and the processor time this process has used."""
    return time.perf_counter(), time.process_time()


def timed(start: tuple[float, float], end: tuple[float, float], result: Any) -> Timed:
    return Timed(end[0] - start[0], end[1] - start[1], result)


def clocked(work: Callable[[], Any]) -> Timed:
    start = now()
    result = work()
    return timed(start, now(), result)


class EnoughError(Exception):
    """All rounds asked for are timed."""


def repaired(
    method: Any, field: Field, seed: int, *, stage: str = "", rounds: int | None = None
) -> Timed:
    """Time a repair of ours.

    Args:
        method: the defense.
        field: what it is given.
        seed: of what it draws.
        stage: stop the clock at the last row of this stage; else at the end.
        rounds: break off after so many rows of it.
    """
    from excise.seeding import Rng

    marks: list[tuple[float, float]] = []

    def on_round(row: Row) -> None:
        if row["stage"] == stage:
            marks.append(now())
            if len(marks) == rounds:
                raise EnoughError

    result: Repair | None = None
    start = now()
    with contextlib.suppress(EnoughError):
        result = method.repair(field.model, field.data, Rng(seed), on_round=on_round)
    return timed(start, marks[-1] if stage else now(), result)


@dataclass(frozen=True)
class Duel:
    """One method on both sides.

    Args:
        method: its name here.
        steps: how much work, in words.
        ours: given a number, does the work and says how long it took.
        theirs: likewise.
        agree: from the two results, in words, whether they agree; only where they must.
        note: what the peer does differently, or more.
        pairs: how many at most; a slow one has few.
    """

    method: str
    steps: str
    ours: Callable[[int], Timed]
    theirs: Callable[[int], Timed]
    agree: Callable[[Any, Any], str] | None = None
    note: str = ""
    pairs: int = 5
