"""No attack: the clean twin, trained as a victim is but without poison.

It is the floor for ASR and the ceiling for RA: a network that never saw a trigger also errs into
the target class now and then (docs/conventions.md, "Floors").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from excise.attacks.victim import Victim
from excise.attacks.workshop import Workshop
from excise.models import device_of
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Recipe, fit
from excise.types import LabelledImages, OnRound, ignore_round

__all__ = ["NoAttack"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoAttack:
    """Trains on clean images; with a victim's seed it draws the same weights and batches."""

    #: Those of every attack, which name what the seed draws: here nothing.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"seeded": {}, "field": {}}

    def plant(
        self,
        model: nn.Module,
        data: LabelledImages,
        recipe: Recipe,
        rng: Rng,
        *,
        surrogate: nn.Module | None = None,
        checkpoints: Path | None = None,
        on_round: OnRound = ignore_round,
    ) -> Victim:
        """Train ``model`` in place on ``data``; see :meth:`Poisoning.plant`."""
        workshop = Workshop(model, data, recipe, rng, str(self), surrogate, checkpoints, on_round)
        fit(
            model, data.to(device_of(model)), recipe, rng.child("fit"),
            checkpoint=workshop.file("fit.pt"), identity=workshop.identity, on_round=on_round,
        )  # fmt: skip
        return Victim(model, None, None)
