"""How well a detector tells triggered images from clean ones: TPR, FPR, F1, AUROC.

Zeng, Park, Mao, Jia, ICCV 2021, report F1 = TP / (TP + ½ (FN + FP)) and the mean of TPR and
1 − FPR, which hides the FPR; here each stands alone. AUROC: scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from excise.errors import DataError
from excise.evaluation.metrics import Rate
from excise.types import SUSPICIOUS

__all__ = ["DetectionFigures", "detection_figures"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DetectionFigures:
    """What a detector says of triggered and of clean images.

    Args:
        tpr: triggered images that are flagged.
        fpr: clean images that are flagged.
        f1: TP / (TP + ½ (FN + FP)); depends on how many of either kind there are.
        auroc: how often a triggered image is more suspicious than a clean one; ties count half.
    """

    tpr: Rate
    fpr: Rate
    f1: float
    auroc: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "tpr": self.tpr.to_json(),
            "fpr": self.fpr.to_json(),
            "f1": self.f1,
            "auroc": self.auroc,
        }


def detection_figures(clean: Scores, triggered: Scores) -> DetectionFigures:
    """Return the figures of a detector from the suspicion of clean and of triggered images.

    Raises:
        DataError: none of one kind, or values that are no suspicion.
    """
    from sklearn.metrics import roc_auc_score

    clean, triggered = (np.asarray(scores, dtype=np.float64) for scores in (clean, triggered))
    both = np.concatenate([clean, triggered])
    if not len(clean) or not len(triggered) or not ((both >= 0) & (both <= 1)).all():
        raise DataError(
            "the suspicion, in [0, 1], of at least one clean and one triggered image",
            got=f"{len(clean)} and {len(triggered)} values",
            remedy="Score both kinds of images with the same detector.",
        )
    fpr, tpr = (Rate.of(scores >= SUSPICIOUS) for scores in (clean, triggered))
    wrong = tpr.n - tpr.count + fpr.count
    labels = np.repeat([0, 1], [len(clean), len(triggered)])
    return DetectionFigures(
        tpr=tpr,
        fpr=fpr,
        f1=tpr.count / (tpr.count + wrong / 2) if tpr.count else 0.0,
        auroc=float(roc_auc_score(labels, both)),
    )
