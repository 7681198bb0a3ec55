"""Training that attacks and defenses share: fit, fine-tuning with early stop, image pairs."""

from excise.training.fit import Companion, Recipe, fit
from excise.training.pairs import Paired, logits_of, tune_on_pairs
from excise.training.tune import Tuned, tune

__all__ = ["Companion", "Paired", "Recipe", "Tuned", "fit", "logits_of", "tune", "tune_on_pairs"]
