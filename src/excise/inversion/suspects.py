"""Five tests of every class side by side, and what they say together of which one is a target.

Test        its number v_c of class c                                  kin
margin      − log of the largest margin that random images climb to     MM-BD (S&P 2024)
patch       log of the size of the smallest mask with a pattern         Neural Cleanse (S&P 2019)
pattern     log of the size of the smallest pattern to add              :mod:`.universal`
smooth      log of the size of the smallest smooth pattern to add       :mod:`.smooth`
memory      share of images the trigger batch norms remember sends there :mod:`.recalled`

Suspicion of class c in a test: :mod:`excise.inversion.outlying`; spreads below ``SPREAD`` (a third,
in size) are not believed. That of memory is no matter of other classes: 0 up to a share of .25,
then rising to ``MOST`` at .75. Together: the sum over the tests, each of which counts ``MOST`` at
most. A backdoor's target stands out in several tests; what stands out by chance does so in one.

No paper describes the combination: it is ours. Each test runs with its fast settings on all the
images it is given. Patterns are compared early, when all classes have had as many rounds; the
triggers of the class that is suspected are then searched for alone (:mod:`.finding`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from excise.inversion.margin_climb import MarginClimb
from excise.inversion.mask_search import MaskSearch
from excise.inversion.memory import Memory
from excise.inversion.outlying import suspicions
from excise.inversion.recalled import recall
from excise.inversion.smooth import Smooth
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.training import Stopwatch
from excise.types import LabelledImages, OnRound, Trigger, ignore_round, within

__all__ = ["TESTS", "Suspects", "compare", "some_rounds"]

TESTS = ("margin", "patch", "pattern", "smooth", "memory")
#: Searches that compare classes, and the rounds after which they do.
_COMPARING: Mapping[str, type[Universal | Smooth]] = {"pattern": Universal, "smooth": Smooth}
_COMPARED = 35
#: From this suspicion on a test's trigger is worth having.
LEAST_TELLING = 0.1
#: The least standard deviation of logarithms that is believed, and what one test counts at most.
SPREAD, MOST = 0.3, 2.0


@dataclass(frozen=True, eq=False)
class Suspects:
    """How suspicious every class is.

    Args:
        numbers: of each test, one a class; None where there is none. Smaller is more suspicious,
            but for memory, where it is the share of images.
        patches: the mask and pattern of every class that has one.
        seconds: of each test.
        remarks: what is to be said of the tests, such as why one is silent.
    """

    numbers: Mapping[str, tuple[float | None, ...]]
    patches: Mapping[int, Trigger]
    seconds: Mapping[str, float]
    remarks: tuple[str, ...] = ()

    def by_test(self) -> dict[str, list[float]]:
        """Return each test's suspicion of each class."""
        return {
            test: _by_share(numbers) if test == "memory" else suspicions(numbers, SPREAD)
            for test, numbers in self.numbers.items()
        }

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

    def told(test: str) -> OnRound:
        return within(on_round, f"test {TESTS.index(test) + 1} of {len(TESTS)}: {test}")

    clock = Stopwatch()
    climb = MarginClimb(**some_rounds(MarginClimb.PRESETS["fast"], effort, "steps"))
    margins = climb.climb(model, images, rng.child("margin"), told("margin"))
    clock.lap("margin")
    masks = MaskSearch(**some_rounds(MaskSearch.PRESETS["fast"], effort, "rounds"))
    patches = masks.search(model, images, rng.child("patch"), on_round=told("patch"))
    clock.lap("patch")
    numbers = {
        "margin": tuple(None if m is None else -m for m in _logs(margins)),
        "patch": _logs(patches.norms),
    }
    for test, kind in _COMPARING.items():
        settings = some_rounds({**kind.PRESETS["fast"], "rounds": _COMPARED}, effort, "rounds")
        search = kind(**settings, keep=images.num_classes)
        found = search.search(model, images, rng.child(test), on_round=told(test))
        numbers[test] = _logs(found.sizes)
        clock.lap(test)
    memory = Memory(model, images.floats())
    recalled = recall(
        memory, images.num_classes, rng.child("memory"), effort=effort, on_round=told("memory")
    )
    clock.lap("memory")
    flips = [one.flips for one in recalled.values()]
    numbers["memory"] = tuple(max(each) for each in zip(*flips, strict=True)) or (
        (None,) * images.num_classes
    )
    found_patches = {c: patches.triggers[c] for c in patches.by_size()}
    remarks = () if memory.silence is None else (memory.silence,)
    return Suspects(numbers, found_patches, clock.seconds, remarks)


def some_rounds(settings: Mapping[str, Any], effort: float, name: str) -> dict[str, Any]:
    """Return settings with a share of the rounds that stand there as ``name``, two at least."""
    return {**settings, name: max(2, round(effort * settings[name]))}


def _by_share(shares: Sequence[float | None]) -> list[float]:
    return [MOST * min(1.0, max(0.0, 2 * ((share or 0.0) - 0.25))) for share in shares]


def _logs(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the logarithm of each positive number; None for others, which say nothing."""
    return tuple(None if n is None or n <= 0 else math.log(n) for n in numbers)
