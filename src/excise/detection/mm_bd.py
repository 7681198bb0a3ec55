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
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import stats
from torch import Tensor, nn

from excise.errors import DataError, ModelError
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import DefenderData, Diagnosis, OnRound, ignore_round

__all__ = ["MMBD", "largest_stands_out", "margins"]

#: The fewest classes: a gamma distribution has three parameters.
_LEAST = 4


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MMBD:
    """MM-BD (Wang et al. 2024): the class with the largest margin, against the others'."""

    starts: Annotated[int, Field(ge=1)] = 30
    """Random images a class from which the climb begins."""
    steps: Annotated[int, Field(ge=1)] = 300
    """Steps of the climb."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Size of a step along the gradient of the margin, in the units of [0, 1] images."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-5
    """A class stops where the sum of its margins changes by less than this share of itself."""
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Alarm where the p-value is this or less."""
    chunk: Annotated[int, Field(ge=1)] = 1024
    """Images in memory at once (ours); changes nothing but rounding."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # The climb is as long, in a third of the steps, from a fifth of the starts.
        "fast": {"starts": 6, "steps": 100, "learning_rate": 0.03},
    }

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
        reached = self._climb(model, data, rng, on_round)
        p = largest_stands_out(reached)
        target = max(range(len(reached)), key=reached.__getitem__)
        backdoored = p <= self.significance
        return Diagnosis(
            backdoored=backdoored,
            statistic=_surprise(p),
            threshold=_surprise(self.significance),
            targets=(target,) if backdoored else (),
            per_class=tuple(reached),
            notes=(f"The largest margin has p = {p:.3g}. It sees one target class at most.",),
            seconds={"climb": time.perf_counter() - start},
        )

    def _climb(
        self, model: nn.Module, data: DefenderData, rng: Rng, on_round: OnRound
    ) -> list[float]:
        """Return r_c for every class, the largest margin over its starts where they ended."""
        net = working_copy(model).requires_grad_(False)
        k, device = data.num_classes, device_of(net)
        shape = (k, self.starts, *data.train.shape)
        images = torch.rand(shape, generator=rng.torch("starts")).to(device, dtype_of(net))
        reached = images.new_zeros(k)
        before = torch.full((k,), torch.inf, dtype=torch.float64, device=device)
        climbing = torch.arange(k, device=device)
        for step in range(1, self.steps + 1):
            # Classes that have stopped are left as they were: only the others are in the batch.
            found, gradient = self._gradient(net, images[climbing], climbing)
            reached[climbing] = found.max(1).values
            images[climbing] += self.learning_rate * gradient
            total = found.double().sum(1)
            change = (total - before[climbing]).abs() / before[climbing].abs()
            before[climbing] = total
            # Infinity / infinity, of the first step, compares false with everything.
            climbing = climbing[~(change < self.tolerance)]
            on_round({"stage": "climb", "step": step, "climbing": len(climbing)})
            if not len(climbing):
                break
        if not reached.isfinite().all():
            raise ModelError(
                "finite logits",
                got="NaN or infinity for a random image",
                remedy="The weights are damaged or diverged; load an earlier checkpoint.",
            )
        return [float(value) for value in reached]

    def _gradient(
        self, net: nn.Module, images: Tensor, classes: Tensor
    ) -> tuple[Float[Tensor, "a s"], Tensor]:
        """Return the margin of every start of some classes, and its gradient."""
        flat, targets = images.flatten(0, 1), classes.repeat_interleave(images.shape[1])
        found, gradients = [], []
        with torch.enable_grad():
            for x, t in zip(flat.split(self.chunk), targets.split(self.chunk), strict=True):
                x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
                margin = margins(net(x.clamp(0, 1)), t)
                gradients += torch.autograd.grad(margin.sum(), x)
                found.append(margin.detach())
        return torch.cat(found).view(images.shape[:2]), torch.cat(gradients).view_as(images)


def margins(logits: Float[Tensor, "n k"], classes: Tensor) -> Float[Tensor, " n"]:
    """Return f_c − max over k ≠ c of f_k for each row's class."""
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return own.squeeze(1) - others.max(1).values


def largest_stands_out(values: Sequence[float]) -> float:
    """Return p = 1 − H(r_max)^K, H a gamma distribution fitted to all values but the largest."""
    *null, largest = sorted(values)
    tail = 0.0 if null[0] < largest else 1.0  # where the others are all equal
    if null[0] < null[-1]:
        tail = float(_fitted(np.array(null)).sf(largest))
    # 1 − (1 − s)^K, exact also where s = 1 − H is tiny.
    return 1.0 if tail >= 1 else -math.expm1(len(values) * math.log1p(-tail))


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


def _surprise(p: float) -> float:
    return -math.log10(max(p, 1e-300))
