"""No defense: the network as it was given, the line every other one is compared with."""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import copy_of
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, OnRound, Repair, Row, ignore_round

__all__ = ["NoDefense"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoDefense:
    """Leaves the network as it is."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model``, in eval mode."""
        row: Row = {"stage": "none", "round": 1}
        on_round(row)
        return Repair(copy_of(model).eval(), (), (row,))
