"""Inverters: recover a trigger from a network and the defender's images, or be told it."""

from excise.inversion.bti_dbf import BTIDBF
from excise.inversion.combined import Combined
from excise.inversion.neural_cleanse import NeuralCleanse
from excise.inversion.oracle import Oracle
from excise.inversion.sample_specific import SampleSpecific
from excise.inversion.smooth import Smooth
from excise.inversion.spatial import Spatial
from excise.inversion.spectral import Spectral
from excise.inversion.universal import Universal

__all__ = [
    "BTIDBF",
    "Combined",
    "NeuralCleanse",
    "Oracle",
    "SampleSpecific",
    "Smooth",
    "Spatial",
    "Spectral",
    "Universal",
]
