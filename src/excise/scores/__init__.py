"""Which filter is guilty: one file per score. Every score is one flat tensor over all filters."""

from excise.scores.divergence import divergence_of, divergent_channels, statistics_divergence
from excise.scores.gradient import mean_absolute_gradient
from excise.scores.lipschitz import channel_lipschitz, outliers

__all__ = [
    "channel_lipschitz",
    "divergence_of",
    "divergent_channels",
    "mean_absolute_gradient",
    "outliers",
    "statistics_divergence",
]
