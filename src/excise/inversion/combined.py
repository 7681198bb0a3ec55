"""Combined: the triggers of the class that four tests together suspect most.

Tests and how they are put together: :mod:`excise.inversion.suspects`. A class is always returned if
any has a trigger: whether it is a backdoor's target is the scanner's to say
(:mod:`excise.detection.combined`), and a repair is to do no harm where it is not.

Measured: docs/scan.md.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.measure import evidence_of
from excise.inversion.suspects import Suspects, compare
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, OnRound, RecoveredTrigger, ignore_round

__all__ = ["Combined", "recovered"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Combined:
    """Triggers of the class that margin, patch, pattern and smooth pattern suspect most."""

    classes: Annotated[int, Field(ge=1)] = 1
    """Classes whose triggers are returned, the most suspicious first."""
    effort: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Share of the usual rounds that each test gets."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the triggers, of each class the pattern before the patch.

        The training images are searched with; the validation images say how often each works.
        """
        suspects = compare(model, data.train, rng, effort=self.effort, on_round=on_round)
        return recovered(suspects, model, data, self.classes)


def recovered(
    suspects: Suspects, model: nn.Module, data: DefenderData, classes: int
) -> list[RecoveredTrigger]:
    """Return the triggers of the most suspicious classes that have any.

    Args:
        suspects: what the tests found with the training images.
        model: the network; comes back as it was.
        data: the validation images say how often each trigger works.
        classes: how many classes, at most.
    """
    total = suspects.together()
    chosen = [c for c in suspects.ranked() if c in suspects.triggers][:classes]
    return [
        RecoveredTrigger(trigger, c, evidence_of(model, trigger, c, data, total[c]))
        for c in chosen
        for trigger in suspects.triggers[c].values()
    ]
