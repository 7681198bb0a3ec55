"""Three tests of every class side by side, and what they say together of which one is a target.

Test        its number v_c of class c                                  kin
margin      − log of the largest margin that random images climb to     MM-BD (S&P 2024)
patch       log of the size of the smallest mask with a pattern         Neural Cleanse (S&P 2019)
pattern     log of the size of the smallest pattern to add              :mod:`.universal`

Suspicion of class c in a test: :mod:`excise.inversion.outlying`. Together: the sum over the tests.
A backdoor's target stands out in several tests; what stands out by chance does so in one.

No paper describes the combination: it is ours. Each test runs with its fast settings, on all the
images it is given; the search for patterns drops no class before half of its rounds are over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.inversion.margin_climb import MarginClimb
from excise.inversion.mask_search import MaskSearch
from excise.inversion.outlying import suspicions
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.types import LabelledImages, OnRound, Trigger, ignore_round

__all__ = ["TESTS", "Suspects", "compare"]

TESTS = ("margin", "patch", "pattern")


@dataclass(frozen=True, eq=False)
class Suspects:
    """How suspicious every class is, and the triggers that were found on the way.

    Args:
        numbers: of each test, one a class, smaller is more suspicious; None where there is none.
        triggers: of each class, by the name of the test that found it.
        seconds: of each test.
    """

    numbers: Mapping[str, tuple[float | None, ...]]
    triggers: Mapping[int, Mapping[str, Trigger]]
    seconds: Mapping[str, float]

    def by_test(self) -> dict[str, list[float]]:
        """Return each test's suspicion of each class."""
        return {test: suspicions(numbers) for test, numbers in self.numbers.items()}

    def together(self) -> list[float]:
        """Return each class's suspicion: the sum over the tests."""
        return [sum(each) for each in zip(*self.by_test().values(), strict=True)]

    def ranked(self) -> list[int]:
        """Return the classes, the most suspicious first."""
        total = self.together()
        return sorted(range(len(total)), key=lambda c: -total[c])


def compare(
    model: nn.Module,
    images: LabelledImages,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> Suspects:
    """Run the three tests.

    Args:
        model: comes back as it was given.
        images: clean ones; their labels play no part.
        rng: draws starts and batches.
        effort: the share of the usual rounds each test gets.
        on_round: called after every round of every test.

    Raises:
        ModelError: logits that are not finite.
    """

    def some(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
        fewer = {name: max(2, round(effort * settings[name])) for name in names}
        return {**settings, **fewer}

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    climb = MarginClimb(**some(MarginClimb.PRESETS["fast"], "steps"))
    margins = climb.climb(model, images, rng.child("margin"), on_round)
    seconds["margin"] = time.perf_counter() - start
    start = time.perf_counter()
    masks = MaskSearch(**some(MaskSearch.PRESETS["fast"], "rounds"))
    patches = masks.search(model, images, rng.child("patch"), on_round=on_round)
    seconds["patch"] = time.perf_counter() - start
    start = time.perf_counter()
    usual = {**Universal.PRESETS["fast"], "drop_after": 70}
    patterns = Universal(**some(usual, "rounds", "drop_after")).search(
        model, images, rng.child("pattern"), on_round=on_round
    )
    seconds["pattern"] = time.perf_counter() - start
    triggers: dict[int, dict[str, Trigger]] = {
        c: {"pattern": trigger} for c, trigger in patterns.triggers.items()
    }
    for c in patches.by_size():
        triggers.setdefault(c, {})["patch"] = patches.triggers[c]
    numbers = {
        "margin": tuple(None if m is None else -m for m in _logs(margins)),
        "patch": _logs(patches.norms),
        "pattern": _logs(patterns.sizes),
    }
    return Suspects(numbers, triggers, seconds)


def _logs(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the logarithm of each positive number; None for others, which say nothing."""
    return tuple(None if n is None or n <= 0 else math.log(n) for n in numbers)
