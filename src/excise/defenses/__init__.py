"""Defenses: a network and the defender's images become a repaired network."""

from excise.defenses.grad_prune import GradPrune
from excise.defenses.none import NoDefense

__all__ = ["GradPrune", "NoDefense"]
