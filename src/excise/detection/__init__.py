"""Detection: which of these images carry a trigger? Learned from clean images alone."""

from excise.detection.frequency import Frequency
from excise.detection.saving import load_scorer, save_scorer
from excise.detection.scorer import FrequencyScorer

__all__ = ["Frequency", "FrequencyScorer", "load_scorer", "save_scorer"]
