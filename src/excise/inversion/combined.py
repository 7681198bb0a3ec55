"""Combined: the triggers of the class that five tests together suspect most.

Tests and how they are put together: :mod:`excise.inversion.suspects`; which triggers of the class:
:mod:`excise.inversion.finding`. A class far below a scan's
alarm is returned too: a repair may be wanted without one. Below ``least`` nothing is: there the
class is as good as drawn, and unlearning its pattern costs a clean network accuracy for nothing.

Measured: docs/scan.md.
"""

from __future__ import annotations

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
from excise.types import DefenderData, OnRound, RecoveredTrigger, ignore_round

__all__ = ["Combined", "recovered"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Combined:
    """Triggers of the class that margin, patch, pattern, smooth and memory suspect most."""

    classes: Annotated[int, Field(ge=1)] = 1
    """Classes whose triggers are returned, the most suspicious first."""
    least: Annotated[float, Field(ge=0)] = 0.5
    """A class of less suspicion is none; 0: always return the most suspicious one."""
    effort: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Share of the usual rounds that each test gets."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the triggers, of each class the best first.

        The training images are searched with; the validation images say how often each works.
        """
        suspects = compare(model, data.train, rng, effort=self.effort, on_round=on_round)
        return recovered(
            suspects, model, data, rng, self.classes,
            least=self.least, effort=self.effort, on_round=on_round,
        )  # fmt: skip


def recovered(
    suspects: Suspects,
    model: nn.Module,
    data: DefenderData,
    rng: Rng,
    classes: int,
    *,
    least: float = 0.0,
    effort: float = 1.0,
    on_round: OnRound = ignore_round,
) -> list[RecoveredTrigger]:
    """Return the triggers of the most suspicious classes.

    Args:
        suspects: what the tests found with the training images.
        model: the network; comes back as it was.
        data: the training images are searched with; the validation images say how often each
            trigger works.
        rng: draws batches.
        classes: how many classes, at most.
        least: a class of less suspicion is left out.
        effort: the share of the usual rounds each search gets.
        on_round: called after every round of every search.
    """
    total, found = suspects.together(), list[RecoveredTrigger]()
    for c in (c for c in suspects.ranked()[:classes] if total[c] >= least):
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
