"""The inverter that was told: it hands over the true trigger, as the Grad-Prune paper assumes.

Standing where a real inverter stands, it makes the assumption part of the record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from excise.seeding import Rng
from excise.types import DefenderData, Evidence, OnRound, RecoveredTrigger, Trigger, ignore_round

__all__ = ["Oracle"]


@dataclass(frozen=True)
class Oracle:
    """Knows the trigger.

    Args:
        trigger: any callable images → images. In a recorded spec it is the word ``oracle``; the
            runner puts the victim's own trigger in its place.
    """

    trigger: Trigger = field(metadata={"told": True})

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the trigger it was told; nothing is computed."""
        return [RecoveredTrigger(self.trigger, evidence=Evidence(told=True))]
