"""The triggers that batch norms remember, whatever class they lead to; where they lead names it.

The search is that of :mod:`excise.inversion.memory` without a class: it looks for what the network
was trained on beside clean images, and sees no logit. Only then is it asked where such images go. A
clean network's batch norms remember nothing that leads anywhere; one with a backdoor sends the
images under the trigger it was trained on to the target.

No paper describes this: it is ours. It costs as much for a thousand classes as for two. Measured:
docs/scan.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from excise.inversion.classwise import ClasswiseSearch
from excise.inversion.memory import Memory, explaining
from excise.inversion.spatial import Spatial
from excise.inversion.spectral import Spectral
from excise.inversion.universal import Universal
from excise.seeding import Rng
from excise.training import logits_of
from excise.types import Images, OnRound, Trigger, ignore_round, within

__all__ = ["KINDS", "Kind", "Recalled", "recall"]


@dataclass(frozen=True)
class Kind:
    """What a trigger may be made of, and how it is searched for.

    Args:
        search: what it is made of; Adam's first rate.
        weight: λ.
        rounds: steps.
        jitter: how far from nothing the search starts where no class pulls.
    """

    search: ClasswiseSearch
    weight: float
    rounds: int
    jitter: float

    def explaining(
        self, memory: Memory, target: int | None, rng: Rng, effort: float, on_round: OnRound
    ) -> Trigger:
        """Return the trigger of this kind that explains most, with a share of the rounds.

        Args:
            memory: of the network and clean images.
            target: the class it is to lead to; None: wherever it leads.
            rng: draws the start and batches.
            effort: the share.
            on_round: called after every round.
        """
        return explaining(
            memory, target, self.search, self.weight, rng,
            rounds=max(2, round(effort * self.rounds)),
            jitter=self.jitter if target is None else 0.0, on_round=on_round,
        )  # fmt: skip


KINDS: Mapping[str, Kind] = {
    "pattern": Kind(Universal(learning_rate=0.02), 0.03, 300, 0.02),
    "waves": Kind(Spectral(learning_rate=0.1), 0.1, 300, 0.02),
    "warp": Kind(Spatial(learning_rate=0.1), 0.01, 200, 0.3),
}


@dataclass(frozen=True, eq=False)
class Recalled:
    """A trigger that batch norms remember.

    Args:
        trigger: adds or warps.
        flips: by class, the share of the images that are not of it, as the network sees them, and
            go there under the trigger.
    """

    trigger: Trigger
    flips: tuple[float, ...]


def recall(
    memory: Memory,
    classes: int,
    rng: Rng,
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> dict[str, Recalled]:
    """Return what is remembered as a pattern, as waves and as a warp; nothing without a memory.

    Args:
        memory: of the network and clean images.
        classes: how many the network tells apart.
        rng: draws starts and batches.
        effort: the share of the usual rounds.
        on_round: called after every round.
    """
    if memory.empty:
        return {}

    def answers(images: Images) -> Tensor:
        return logits_of(memory.net, images, batch_size=250).argmax(1)

    before = answers(memory.images)
    found = {}
    for name, kind in KINDS.items():
        trigger = kind.explaining(memory, None, rng.child(name), effort, within(on_round, name))
        after = answers(trigger(memory.images))
        went = torch.bincount(after[after != before], minlength=classes).double()
        others = len(before) - torch.bincount(before, minlength=classes)
        flips = (went / others.clamp_min(1)).tolist()
        found[name] = Recalled(trigger, tuple(flips))
    return found
