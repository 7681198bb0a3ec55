"""Attacks: poison a data set, train a victim."""

from excise.attacks.adap_blend import AdapBlend
from excise.attacks.adap_patch import AdapPatch
from excise.attacks.badnets import BadNets
from excise.attacks.blended import Blended
from excise.attacks.bpp import Bpp
from excise.attacks.ftrojan import FTrojan
from excise.attacks.input_aware import InputAware
from excise.attacks.label_consistent import LabelConsistent
from excise.attacks.lf import LF
from excise.attacks.lira import Lira
from excise.attacks.none import NoAttack
from excise.attacks.poisoning import CleanLabel, DirtyLabel, Drawn, Poisoning
from excise.attacks.sig import Sig
from excise.attacks.ssba import SSBA
from excise.attacks.trojannn import TrojanNN
from excise.attacks.victim import Victim, load_backdoor, load_victim, save_victim
from excise.attacks.wanet import WaNet

__all__ = [
    "LF",
    "SSBA",
    "AdapBlend",
    "AdapPatch",
    "BadNets",
    "Blended",
    "Bpp",
    "CleanLabel",
    "DirtyLabel",
    "Drawn",
    "FTrojan",
    "InputAware",
    "LabelConsistent",
    "Lira",
    "NoAttack",
    "Poisoning",
    "Sig",
    "TrojanNN",
    "Victim",
    "WaNet",
    "load_backdoor",
    "load_victim",
    "save_victim",
]
