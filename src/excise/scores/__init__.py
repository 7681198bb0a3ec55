"""Which filter is guilty: one file per score. Every score is one flat tensor over all filters."""

from excise.scores.gradient import mean_absolute_gradient

__all__ = ["mean_absolute_gradient"]
