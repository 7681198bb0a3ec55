"""Invert again: does the old trigger still work, and is there a new one that is as small?

Kin: Wang et al.: Neural Cleanse, S&P 2019, section VI, tries reversed triggers on the patched
network; the second search and the test are ours.

Old trigger         recovered from the given network, by the inverter, or known
Fails where         (a) the rate at which it steers held-back images of other classes on the
                        repaired network lies, with its interval, above chance, above 5 % and above
                        the interval of clean ones that reach the class; or
                    (b) the inverter finds a trigger for the same class in the repaired network
                        that works so, and whose size is not larger than the old one's
                    The search names classes that stand out: one that does not has none here
Cannot be told      where that trigger is larger: a weaker backdoor, or the inverter's false alarm
Size                ‖T(x) − x‖₁ averaged over the training images; not larger: the intervals meet

Both searches draw the same numbers, so that what differs between them is the network. What an
inverter finds in a network without a backdoor it finds here: its false alarms become this audit's.

Measured: docs/audit.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.audit.attacking import check_pair, flips, floor_from, size_of, trigger_of
from excise.audit.finding import Figure, Finding, nothing, said
from excise.audit.judging import judged
from excise.inversion import NeuralCleanse
from excise.models import device_of, dtype_of
from excise.rates import Interval, Rate
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Images,
    Inverter,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    ignore_round,
)

__all__ = ["InvertAgain", "fast_inverter"]


def fast_inverter() -> Inverter:
    """Return Neural Cleanse with its fast settings."""
    return NeuralCleanse(**NeuralCleanse.PRESETS["fast"])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InvertAgain:
    """Recover a trigger from the repaired network, and try the old one on it."""

    inverter: Inverter = Field(default_factory=fast_inverter)
    """How triggers are found, in the given network and in the repaired one."""

    name: ClassVar[str] = "invert-again"

    def audit(
        self,
        given: nn.Module,
        repaired: nn.Module,
        data: DefenderData,
        rng: Rng,
        *,
        known: RecoveredTrigger | None = None,
        on_round: OnRound = ignore_round,
    ) -> Finding:
        """Return whether the old trigger, or a new one of its class, works on the repaired net."""
        start = time.perf_counter()
        held = data.held_out("InvertAgain")
        check_pair(given, repaired, held)
        old = trigger_of(self.inverter, given, data, rng, known, on_round)
        if old is None or old.target is None:
            return nothing(self.name, start, known is not None)
        target = old.target
        train = data.train.floats().to(device_of(repaired), dtype_of(repaired))
        before, after = (flips(net, old, target, held) for net in (given, repaired))
        clean = flips(repaired, None, target, held)
        floor = floor_from(clean, held.num_classes)
        size = size_of(old, train)
        values: dict[str, Figure] = {
            "recovered trigger, given network": before,
            "recovered trigger, repaired network": after,
            "no trigger, repaired network": clean,
            "size of the recovered trigger, in pixels": size,
        }
        label = data.train.classes[target]
        passed = judged(after, floor, clean.value or 0.0)
        sentence = (
            f"The trigger recovered from the given network steers {said(after)} to {label!r} in "
            f"the repaired one, {said(before)} before."
        )
        found = self.inverter.fit(repaired, data, rng.child("invert"), on_round=on_round)
        # A told trigger was not found: it says nothing of the repaired network.
        again = [t for t in found if t.target == target and not t.evidence.told]
        if again:
            new = _gravest(again, repaired, target, held, train, floor, size)
            values |= {
                "new trigger, repaired network": new.rate,
                "size of the new trigger, in pixels": new.size,
            }
            if new.as_small:
                passed = False
            elif new.works and passed:
                passed = None
            sentence += (
                f" A second search finds a trigger for {label!r} of size {new.size.value:.1f}, the "
                f"first had {size.value:.1f}"
                + ("" if new.index is None else f" (it stands out by {new.index:.1f})")
                + f"; it steers {said(new.rate)}."
            )
        elif not all(t.evidence.told for t in found) or not found:
            sentence += f" In a second search {label!r} does not stand out."
        seconds = time.perf_counter() - start
        return Finding(self.name, passed, sentence, values, floor, seconds)


@plain_dataclass(frozen=True)
class _Again:
    """How a trigger of the second search does.

    Args:
        rate: at which it steers held-back images in the repaired network.
        size: what it changes, in pixels.
        index: how far its class stands out, if that is known.
        works: whether its rate lies above the floor.
        as_small: whether it works and is no larger than the old trigger.
    """

    rate: Rate
    size: Interval
    index: float | None
    works: bool
    as_small: bool


def _gravest(
    found: Sequence[RecoveredTrigger],
    repaired: nn.Module,
    target: int,
    held: LabelledImages,
    train: Images,
    floor: float,
    old: Interval,
) -> _Again:
    """Return the first trigger that works and is as small as the old one, else one that works."""
    tried = []
    for one in found:
        rate, size = flips(repaired, one, target, held), size_of(one, train)
        works = rate.low > floor
        tried.append(
            _Again(rate, size, one.evidence.anomaly, works, works and size.low <= old.high)
        )
    return max(tried, key=lambda one: (one.as_small, one.works))
