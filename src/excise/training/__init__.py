"""Training that attacks and defenses share: fit, epochs, fine-tuning, image pairs, masks, PGD."""

from excise.training.epochs import Epochs, cosine, set_rate, train_epochs
from excise.training.fit import Companion, Recipe, fit
from excise.training.masks import Masked, channel_masks, fold
from excise.training.pairs import Paired, logits_of, tune_on_pairs
from excise.training.tune import Tuned, tune

__all__ = [
    "Companion",
    "Epochs",
    "Masked",
    "Paired",
    "Recipe",
    "Tuned",
    "channel_masks",
    "cosine",
    "fit",
    "fold",
    "logits_of",
    "set_rate",
    "train_epochs",
    "tune",
    "tune_on_pairs",
]
