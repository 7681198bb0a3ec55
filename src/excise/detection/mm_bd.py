"""MM-BD: is one class's largest possible margin out of line with the others'? Needs no images.

Paper: Wang, Xiang, Miller, Kesidis: MM-BD: Post-Training Detection of Backdoor Attacks with
Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic, S&P 2024 (arXiv 2205.06900),
section III.

Margin statistic    r_c = max over x in [0, 1] of f_c(x) − max over k ≠ c of f_k(x)
Null distribution   a gamma distribution H fitted to every r_c but the largest
p-value             1 − H(r_max)^K for K classes; alarm where p ≤ .05

Departures from the authors' code, and why:

1. All starts of all classes climb in one batch; a class whose summed margin no longer moves leaves.
2. They step to points outside [0, 1] and judge them clipped, where a pixel that has left has no
   gradient and never returns. So do we; only that the clipped images are what is looked at.
3. Momentum is left out: their optimizer is made anew for every step, so theirs never acts.
4. The statistic is −log₁₀ p, which tells 1e-6 from 1e-9 where 1 − p does not, cut off at 300.
5. Where the fit fails (margins all but equal) a normal distribution of their mean and standard
   deviation stands in for it; where they are equal, p is 0 or 1.
6. They train without normalization; in a network that divides by a std of a quarter the same rate
   climbs faster.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import nn

from excise.errors import DataError
from excise.inversion.margin_climb import MarginClimb
from excise.inversion.outlying import of_any, surprise
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Diagnosis, OnRound, ignore_round

__all__ = ["MMBD", "largest_stands_out"]

#: The fewest classes: a gamma distribution has three parameters.
_LEAST = 4


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MMBD(MarginClimb):
    """MM-BD (Wang et al. 2024): the class with the largest margin, against the others'."""

    significance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Alarm where the p-value is this or less."""

    def scan(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Diagnosis:
        """Return the diagnosis; of the data only the shape and the number of classes are used.

        Raises:
            DataError: fewer than four classes.
            ModelError: logits that are not finite.
        """
        if data.num_classes < _LEAST:
            raise DataError(
                f"at least {_LEAST} classes, to compare one with the others",
                got=f"{data.num_classes}",
                remedy="Choose another scanner: `excise list scanners`.",
            )
        start = time.perf_counter()
        reached = self.climb(model, data.train, rng, on_round)
        p = largest_stands_out(reached)
        target = max(range(len(reached)), key=reached.__getitem__)
        backdoored = p <= self.significance
        return Diagnosis(
            backdoored=backdoored,
            statistic=surprise(p),
            threshold=surprise(self.significance),
            targets=(target,) if backdoored else (),
            per_class=tuple(reached),
            notes=(f"The largest margin has p = {p:.3g}. It sees one target class at most.",),
            seconds={"climb": time.perf_counter() - start},
        )


def largest_stands_out(values: Sequence[float]) -> float:
    """Return p = 1 − H(r_max)^K, H a gamma distribution fitted to all values but the largest."""
    *null, largest = sorted(values)
    tail = 0.0 if null[0] < largest else 1.0  # where the others are all equal
    if null[0] < null[-1]:
        tail = float(_fitted(np.array(null)).sf(largest))
    return of_any(tail, len(values))


def _fitted(null: np.ndarray) -> Any:
    """Return the fitted gamma distribution, or, if it cannot be fitted, a normal one."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            shape, location, scale = stats.gamma.fit(null)
        except (ValueError, RuntimeError, FloatingPointError):
            shape = scale = math.nan
    if 0 < shape < math.inf and 0 < scale < math.inf:
        return stats.gamma(shape, loc=location, scale=scale)
    return stats.norm(null.mean(), null.std())
