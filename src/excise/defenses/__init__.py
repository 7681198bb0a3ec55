"""Defenses: a network and the defender's images become a repaired network."""

from excise.defenses.anp import ANP
from excise.defenses.awm import AWM
from excise.defenses.bnp import BNP
from excise.defenses.bti_dbf import BTIDBFU
from excise.defenses.clp import CLP
from excise.defenses.d3 import D3
from excise.defenses.fmp import FMP
from excise.defenses.fp import FP
from excise.defenses.fst import FST
from excise.defenses.ft import FineTuning
from excise.defenses.ft_sam import FTSAM
from excise.defenses.grad_prune import GradPrune
from excise.defenses.i_bau import IBAU
from excise.defenses.ims import IMS
from excise.defenses.mcr import MCR
from excise.defenses.mm_bm import MMBM
from excise.defenses.nad import NAD
from excise.defenses.neural_cleanse import NeuralCleanseUnlearning
from excise.defenses.nft import NFT
from excise.defenses.none import NoDefense
from excise.defenses.npd import NPD
from excise.defenses.pbe import PBE
from excise.defenses.rnp import RNP
from excise.defenses.sau import SAU
from excise.defenses.soft_prune import SoftPrune
from excise.defenses.tsbd import TSBD
from excise.defenses.ulrl import ULRL

__all__ = [
    "ANP",
    "AWM",
    "BNP",
    "BTIDBFU",
    "CLP",
    "D3",
    "FMP",
    "FP",
    "FST",
    "FTSAM",
    "IBAU",
    "IMS",
    "MCR",
    "MMBM",
    "NAD",
    "NFT",
    "NPD",
    "PBE",
    "RNP",
    "SAU",
    "TSBD",
    "ULRL",
    "FineTuning",
    "GradPrune",
    "NeuralCleanseUnlearning",
    "NoDefense",
    "SoftPrune",
]
