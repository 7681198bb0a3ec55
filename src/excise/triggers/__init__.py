"""Triggers: pure functions images → images, and how they are written to disk."""

from excise.triggers.additive import Additive
from excise.triggers.blend import Blend
from excise.triggers.ftrojan import FTrojan
from excise.triggers.input_aware import InputAwarePattern
from excise.triggers.layers import Layers
from excise.triggers.patch import Patch
from excise.triggers.quantize import Quantize
from excise.triggers.residual_generator import ResidualGenerator
from excise.triggers.saving import load_trigger, save_trigger
from excise.triggers.sinusoid import Sinusoid
from excise.triggers.ssba import Ssba
from excise.triggers.warp import Warp

__all__ = [
    "Additive",
    "Blend",
    "FTrojan",
    "InputAwarePattern",
    "Layers",
    "Patch",
    "Quantize",
    "ResidualGenerator",
    "Sinusoid",
    "Ssba",
    "Warp",
    "load_trigger",
    "save_trigger",
]
