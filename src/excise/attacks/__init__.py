"""Attacks: poison a data set, train a victim."""

from excise.attacks.badnets import BadNets
from excise.attacks.blended import Blended
from excise.attacks.none import NoAttack
from excise.attacks.poisoning import CleanLabel, DirtyLabel, Drawn, Poisoning
from excise.attacks.victim import Victim, load_backdoor, load_victim, save_victim

__all__ = [
    "BadNets",
    "Blended",
    "CleanLabel",
    "DirtyLabel",
    "Drawn",
    "NoAttack",
    "Poisoning",
    "Victim",
    "load_backdoor",
    "load_victim",
    "save_victim",
]
