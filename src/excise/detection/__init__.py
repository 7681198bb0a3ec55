"""Detection: which of these images carry a trigger? And is this network backdoored at all?"""

from excise.detection.combined import CombinedScan
from excise.detection.frequency import Frequency
from excise.detection.mm_bd import MMBD
from excise.detection.neural_cleanse import NeuralCleanseScan
from excise.detection.saving import load_scorer, save_scorer
from excise.detection.scorer import FrequencyScorer

__all__ = [
    "MMBD",
    "CombinedScan",
    "Frequency",
    "FrequencyScorer",
    "NeuralCleanseScan",
    "load_scorer",
    "save_scorer",
]
