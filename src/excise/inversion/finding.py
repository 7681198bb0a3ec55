"""The triggers of one class: small ones, and such as explain what the network remembers.

Small       pattern (:mod:`.universal`), waves (:mod:`.spectral`), and the patch that was found when
            classes were compared. A class can be reached by patterns that were never trained on.
Explaining  pattern, waves, warp (:mod:`.spatial`) by the search of :mod:`excise.inversion.memory`

Kept are those that explain most of what batch norms remember; without a memory the small ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from excise.inversion.memory import Memory
from excise.inversion.recalled import KINDS
from excise.inversion.spectral import Spectral
from excise.inversion.suspects import Suspects, some_rounds
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.types import LabelledImages, OnRound, Trigger, ignore_round, within

__all__ = ["KEPT", "LEAST_EXPLAINED", "smallest", "triggers_of"]

#: Searches for a trigger of the class that was found.
_FINDING: Mapping[str, type[Universal | Spectral]] = {"pattern": Universal, "waves": Spectral}
#: A trigger that explains a smaller share of what batch norms remember explains nothing.
LEAST_EXPLAINED = 0.05
#: Triggers of a class that are returned, at most.
KEPT = 3
#: Images a round when one class is searched for alone.
_BATCH = 24


def triggers_of(
    suspects: Suspects,
    c: int,
    model: nn.Module,
    images: LabelledImages,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> list[tuple[Trigger, float | None]]:
    """Return the triggers of one class, at most :data:`KEPT`, the best first.

    A pattern and waves are searched for anew, for this class alone, longer and with more images;
    then once more, with a warp, so that they explain what batch norms remember. Those that explain
    at least half as much as the best are returned, each with the share it explains. Where nothing
    is remembered or nothing explains it: pattern, waves, and the patch if the class stands out by
    it, each with None.

    Args:
        suspects: what the tests found.
        c: the class.
        model: comes back as it was given.
        images: clean ones; their labels play no part.
        rng: draws batches.
        effort: the share of the usual rounds each search gets.
        on_round: called after every round of every search.
    """
    found = smallest(c, model, images, rng, effort=effort, on_round=on_round)
    if c in suspects.patches and ("patch" in suspects.telling(c) or not found):
        found.append(suspects.patches[c])
    memory = Memory(model, images.floats())
    if memory.empty:
        return [(trigger, None) for trigger in found[:KEPT]]
    remembered = [
        kind.explaining(
            memory, c, rng.child(f"{name} remembered"), effort,
            within(on_round, f"class {c}: {name} that batch norms remember"),
        )
        for name, kind in KINDS.items()
    ]  # fmt: skip
    shares = [(t, memory.explained_share(t)) for t in (*remembered, *found)]
    most = max(share for _, share in shares)
    if most < LEAST_EXPLAINED:
        return [(trigger, None) for trigger in found[:KEPT]]
    telling = sorted((one for one in shares if one[1] >= most / 2), key=lambda one: -one[1])
    return list(telling[:KEPT])


def smallest(
    c: int,
    model: nn.Module,
    images: LabelledImages,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> list[Trigger]:
    """Return the smallest pattern and the smallest waves that lead to one class, where they do.

    Args:
        c: the class.
        model: comes back as it was given.
        images: clean ones; their labels play no part.
        rng: draws batches.
        effort: the share of the usual rounds each search gets.
        on_round: called after every round of either.
    """
    found: list[Trigger] = []
    for name, kind in _FINDING.items():
        usual = {**kind.PRESETS["fast"], "batch_size": _BATCH}
        search = kind(**some_rounds(usual, effort, "rounds"))
        told = within(on_round, f"class {c}: smallest {name}")
        one = search.search(model, images, rng.child(f"{name} again"), classes=[c], on_round=told)
        found += one.triggers.values()
    return found
