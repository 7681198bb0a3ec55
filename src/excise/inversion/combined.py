"""Combined: the triggers of the class that five tests together suspect most.

Tests and how they are put together: :mod:`excise.inversion.suspects`; which triggers of the class:
:mod:`excise.inversion.finding`. A class far below a scan's alarm is returned too: a repair may be
wanted without one. But unlearning the pattern of a class that merely stands out a little costs a
clean network accuracy for nothing. So below ``least`` nothing is returned, and below ``sure``
nothing unless what batch norms remember leads to the class as well: of sixty small clean networks
thirty-six have a class of suspicion .5, and one has such a memory too.

Measured: docs/scan.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.finding import triggers_of
from excise.inversion.measure import evidence_of
from excise.inversion.suspects import Suspects, compare
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Inversion, OnRound, RecoveredTrigger, ignore_round

__all__ = ["Combined", "recovered"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Combined:
    """Triggers of the class that margin, patch, pattern, smooth and memory suspect most."""

    classes: Annotated[int, Field(ge=1)] = 1
    """Classes whose triggers are returned, the most suspicious first."""
    least: Annotated[float, Field(ge=0)] = 0.5
    """A class of less suspicion is none; 0: always return the most suspicious one."""
    least_memory: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Nor is one to which what batch norms remember leads a smaller share of the images, unless
    its suspicion is ``sure``. A network without such memory is not asked."""
    sure: Annotated[float, Field(ge=0)] = 1.9
    """From this suspicion on, about that of a scan's alarm, a class needs no memory."""
    effort: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Share of the usual rounds that each test gets."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Inversion:
        """Return the triggers, of each class the best first; without any the reason is noted.

        The training images are searched with; the validation images say how often each works. Where
        they are as many, with two images a class, all of them rank the classes.
        """
        held = 0 if data.validation is None else len(data.validation)
        ranking = data.everything() if held >= len(data.train) else data.train
        suspects = compare(model, ranking, rng, effort=self.effort, on_round=on_round)
        ranked = suspects.ranked()[: self.classes]
        refused = {c: self._refusal(suspects, c, data.train.classes[c]) for c in ranked}
        taken = [c for c, why in refused.items() if why is None]
        triggers = recovered(
            suspects, model, data, rng, taken, effort=self.effort, on_round=on_round
        )
        why_not = [why for why in refused.values() if why is not None]
        return Inversion(triggers, [*suspects.remarks, *why_not])

    def _refusal(self, suspects: Suspects, c: int, label: str) -> str | None:
        """Return why the triggers of a class are not worth unlearning; None if they are."""
        suspicion, memory = suspects.together()[c], suspects.numbers["memory"][c]
        if self.least == 0 or suspicion >= max(self.least, self.sure):
            return None
        by = f"{label!r} is the most suspicious class, but only by {suspicion:.1f}"
        anyway = "least=0 takes it all the same."
        if suspicion < self.least:
            return f"{by}: one of less than {self.least:g} is none; {anyway}"
        if memory is None or memory >= self.least_memory:
            return None
        return (
            f"{by}, and what batch norms remember leads {memory:.0%} of the images to it. Below a "
            f"suspicion of {self.sure:g} that must be {self.least_memory:.0%}; {anyway}"
        )


def recovered(
    suspects: Suspects,
    model: nn.Module,
    data: DefenderData,
    rng: Rng,
    classes: Iterable[int],
    *,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> list[RecoveredTrigger]:
    """Return the triggers of some classes.

    Args:
        suspects: what the tests found with the training images.
        model: the network; comes back as it was.
        data: the training images are searched with; the validation images say how often each
            trigger works.
        rng: draws batches.
        classes: which.
        effort: the share of the usual rounds each search gets.
        on_round: called after every round of every search.
    """
    total, found = suspects.together(), list[RecoveredTrigger]()
    for c in classes:
        triggers = triggers_of(
            suspects, c, model, data.train, rng, effort=effort, on_round=on_round
        )
        found += [
            RecoveredTrigger(
                trigger, c, replace(evidence_of(model, trigger, c, data, total[c]), explained=share)
            )
            for trigger, share in triggers
        ]
    return found
