"""Four tests of every class side by side, and what they say together of which one is a target.

Test        its number v_c of class c                                  kin
margin      − log of the largest margin that random images climb to     MM-BD (S&P 2024)
patch       log of the size of the smallest mask with a pattern         Neural Cleanse (S&P 2019)
pattern     log of the size of the smallest pattern to add              :mod:`.universal`
smooth      log of the size of the smallest smooth pattern to add       :mod:`.smooth`

Suspicion of class c in a test: :mod:`excise.inversion.outlying`; spreads below ``SPREAD`` (a third,
in size) are not believed. Together: the sum over the tests, each of which counts ``MOST`` at most.
A backdoor's target stands out in several tests; what stands out by chance does so in one.

No paper describes the combination: it is ours. Each test runs with its fast settings, on all the
images it is given; patterns are compared before the search drops any class.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.inversion.classwise import ClasswiseSearch
from excise.inversion.margin_climb import MarginClimb
from excise.inversion.mask_search import MaskSearch
from excise.inversion.outlying import suspicions
from excise.inversion.smooth import Smooth
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.types import LabelledImages, OnRound, Trigger, ignore_round

__all__ = ["TESTS", "Suspects", "compare"]

TESTS = ("margin", "patch", "pattern", "smooth")
#: The least standard deviation of logarithms that is believed, and what one test counts at most.
SPREAD, MOST = 0.3, 2.0


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
        return {test: suspicions(numbers, SPREAD) for test, numbers in self.numbers.items()}

    def together(self) -> list[float]:
        """Return each class's suspicion: the sum over the tests, of each ``MOST`` at most."""
        tests = zip(*self.by_test().values(), strict=True)
        return [sum(min(MOST, one) for one in each) for each in tests]

    def ranked(self) -> list[int]:
        """Return the classes, the most suspicious first; of equal ones the easiest to reach."""
        total, sizes = self.together(), self.numbers.get("pattern", ())

        def order(c: int) -> tuple[float, float]:
            size = sizes[c] if c < len(sizes) else None
            return -total[c], math.inf if size is None else size

        return sorted(range(len(total)), key=order)


def compare(
    model: nn.Module,
    images: LabelledImages,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> Suspects:
    """Run the tests.

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
    searches: dict[str, ClasswiseSearch] = {
        "pattern": Universal(**some(Universal.PRESETS["fast"], "rounds", "drop_after")),
        "smooth": Smooth(**some(Smooth.PRESETS["fast"], "rounds", "drop_after")),
    }
    sizes, triggers = {"patch": patches.norms}, dict[int, dict[str, Trigger]]()
    for test, search in searches.items():
        start = time.perf_counter()
        found = search.search(model, images, rng.child(test), on_round=on_round)
        seconds[test] = time.perf_counter() - start
        sizes[test] = found.sizes
        for c, trigger in found.triggers.items():
            triggers.setdefault(c, {})[test] = trigger
    for c in patches.by_size():
        triggers.setdefault(c, {})["patch"] = patches.triggers[c]
    numbers = {"margin": tuple(None if m is None else -m for m in _logs(margins))}
    numbers |= {test: _logs(each) for test, each in sizes.items()}
    return Suspects(numbers, triggers, seconds)


def _logs(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the logarithm of each positive number; None for others, which say nothing."""
    return tuple(None if n is None or n <= 0 else math.log(n) for n in numbers)
