"""Training that attacks and defenses share: fit, epochs, fine-tuning, image pairs, masks, PGD."""

from excise.training.epochs import Epochs, cosine, descend, recorded, set_rate, train_epochs
from excise.training.fit import Companion, Recipe, fit
from excise.training.masks import Masked, channel_masks, fold, learn_masks
from excise.training.pairs import Paired, logits_of, tune_on_pairs
from excise.training.stopwatch import Stopwatch
from excise.training.tune import Tuned, tune

__all__ = [
    "Companion",
    "Epochs",
    "Masked",
    "Paired",
    "Recipe",
    "Stopwatch",
    "Tuned",
    "channel_masks",
    "cosine",
    "descend",
    "fit",
    "fold",
    "learn_masks",
    "logits_of",
    "recorded",
    "set_rate",
    "train_epochs",
    "tune",
    "tune_on_pairs",
]
