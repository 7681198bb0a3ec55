"""Four tests of every class side by side, and what they say together of which one is a target.

Test        its number v_c of class c                                  kin
margin      − log of the largest margin that random images climb to     MM-BD (S&P 2024)
patch       log of the size of the smallest mask with a pattern         Neural Cleanse (S&P 2019)
pattern     log of the size of the smallest pattern to add              :mod:`.universal`
smooth      log of the size of the smallest smooth pattern to add       :mod:`.smooth`

Suspicion of class c in a test: :mod:`excise.inversion.outlying`; spreads below ``SPREAD`` (a third,
in size) are not believed. Together: the sum over the tests, each of which counts ``MOST`` at most.
A backdoor's target stands out in several tests; what stands out by chance does so in one.

No paper describes the combination: it is ours. Each test runs with its fast settings on all the
images it is given. Patterns are compared early, when all classes have had as many rounds; the
triggers of the class that is asked for are then searched for alone.
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
from excise.inversion.smooth import Smooth
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.types import LabelledImages, OnRound, Trigger, ignore_round

__all__ = ["TESTS", "Suspects", "compare", "triggers_of"]

TESTS = ("margin", "patch", "pattern", "smooth")
#: Searches for a pattern, and the rounds after which they are compared.
_SEARCHES: Mapping[str, type[Universal | Smooth]] = {"pattern": Universal, "smooth": Smooth}
_COMPARED = 35
#: Images a round when one class is searched for alone.
_BATCH = 24
#: From this suspicion on a test's trigger is worth having.
LEAST_TELLING = 0.1
#: The least standard deviation of logarithms that is believed, and what one test counts at most.
SPREAD, MOST = 0.3, 2.0


@dataclass(frozen=True, eq=False)
class Suspects:
    """How suspicious every class is.

    Args:
        numbers: of each test, one a class, smaller is more suspicious; None where there is none.
        patches: the mask and pattern of every class that has one.
        seconds: of each test.
    """

    numbers: Mapping[str, tuple[float | None, ...]]
    patches: Mapping[int, Trigger]
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

    def telling(self, c: int) -> set[str]:
        """Return the tests in which class ``c`` stands out at all."""
        return {test for test, each in self.by_test().items() if each[c] >= LEAST_TELLING}


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
    start = time.perf_counter()
    climb = MarginClimb(**_some(MarginClimb.PRESETS["fast"], effort, "steps"))
    margins = climb.climb(model, images, rng.child("margin"), on_round)
    seconds = {"margin": time.perf_counter() - start}
    start = time.perf_counter()
    masks = MaskSearch(**_some(MaskSearch.PRESETS["fast"], effort, "rounds"))
    patches = masks.search(model, images, rng.child("patch"), on_round=on_round)
    seconds["patch"] = time.perf_counter() - start
    numbers = {
        "margin": tuple(None if m is None else -m for m in _logs(margins)),
        "patch": _logs(patches.norms),
    }
    for test, kind in _SEARCHES.items():
        start = time.perf_counter()
        settings = _some({**kind.PRESETS["fast"], "rounds": _COMPARED}, effort, "rounds")
        search = kind(**settings, keep=images.num_classes)
        found = search.search(model, images, rng.child(test), on_round=on_round)
        seconds[test], numbers[test] = time.perf_counter() - start, _logs(found.sizes)
    found_patches = {c: patches.triggers[c] for c in patches.by_size()}
    return Suspects(numbers, found_patches, seconds)


def triggers_of(
    suspects: Suspects,
    c: int,
    model: nn.Module,
    images: LabelledImages,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> dict[str, Trigger]:
    """Return the triggers of one class, by the test that asks for such a one.

    A pattern always, the others where the class stands out in their test; patterns are searched for
    anew, for this class alone, longer and with more images.

    Args:
        suspects: what the tests found.
        c: the class.
        model: comes back as it was given.
        images: clean ones; their labels play no part.
        rng: draws batches.
        effort: the share of the usual rounds each search gets.
        on_round: called after every round of every search.
    """
    telling = suspects.telling(c)
    found: dict[str, Trigger] = {}
    for test, kind in _SEARCHES.items():
        if test == "pattern" or test in telling:
            usual = {**kind.PRESETS["fast"], "batch_size": _BATCH}
            search = kind(**_some(usual, effort, "rounds"))
            longer = search.search(
                model, images, rng.child(f"{test} again"), classes=[c], on_round=on_round
            )
            if c in longer.triggers:
                found[test] = longer.triggers[c]
    if c in suspects.patches and ("patch" in telling or not found):
        found["patch"] = suspects.patches[c]
    return found


def _some(settings: Mapping[str, Any], effort: float, name: str) -> dict[str, Any]:
    return {**settings, name: max(2, round(effort * settings[name]))}


def _logs(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the logarithm of each positive number; None for others, which say nothing."""
    return tuple(None if n is None or n <= 0 else math.log(n) for n in numbers)
