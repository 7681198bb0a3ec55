"""Defenses: a network and the defender's images become a repaired network."""

from excise.defenses.grad_prune import GradPrune
from excise.defenses.none import NoDefense
from excise.defenses.sau import SAU

__all__ = ["SAU", "GradPrune", "NoDefense"]
