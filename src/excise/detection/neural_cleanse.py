"""Neural Cleanse as a scanner: is there a class that a small patch sends every image to?

Paper: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating
Backdoor Attacks in Neural Networks, S&P 2019, section IV. The search and where it departs from the
authors' code: :mod:`excise.inversion.mask_search`.

Anomaly index       (median − n_t) / MAD of the classes' norms n_t = ‖m_t‖₁
Alarm               where some index is 2 or more: a class below the median, far off

Departures from the paper, and why:

1. The median of an even number of classes is the mean of the two in the middle; a common port takes
   the lower one.
2. MAD = 0 has a substitute (:func:`excise.inversion.anomaly.anomaly_indices`).
3. A class that no mask sends all images to has no norm and takes no part; its figure in the
   diagnosis is that of the class that stands out least.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import time

from pydantic.dataclasses import dataclass
from torch import nn

from excise.inversion.mask_search import MaskSearch
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Diagnosis, OnRound, ignore_round

__all__ = ["NeuralCleanseScan"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NeuralCleanseScan(MaskSearch):
    """Neural Cleanse (Wang et al. 2019): alarm where one class's smallest trigger is tiny."""

    def scan(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Diagnosis:
        """Return the diagnosis; every image is searched with."""
        start = time.perf_counter()
        images = data.everything()
        found = self.search(model, images, rng, on_round=on_round)
        known = [index for index in found.indices() if index is not None]
        least = min(known, default=0.0)
        targets = found.flagged(self.threshold)
        sizes = tuple(f"Class {images.classes[t]}: a mask of {found.norms[t]:.2f} pixels."
                      for t in targets)  # fmt: skip
        return Diagnosis(
            backdoored=bool(targets),
            statistic=max(known, default=0.0),
            threshold=self.threshold,
            targets=tuple(targets),
            per_class=tuple(least if index is None else index for index in found.indices()),
            notes=sizes + found.notes(images.classes),
            seconds={"search": time.perf_counter() - start},
        )
