"""The largest margin of every class, over random images that climb: MM-BD's statistic.

Paper: Wang, Xiang, Miller, Kesidis: MM-BD, S&P 2024 (arXiv 2205.06900), section III.

r_c = max over x in [0, 1] of f_c(x) − max over k ≠ c of f_k(x)

Where this departs from the authors' code, and what is made of the margins:
:mod:`excise.detection.mm_bd`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.errors import ModelError
from excise.inversion.chunks import at_once
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import LabelledImages, OnRound

__all__ = ["MarginClimb", "margins"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MarginClimb:
    """The fields of the climb, and the climb."""

    starts: Annotated[int, Field(ge=1)] = 30
    """Random images a class from which the climb begins."""
    steps: Annotated[int, Field(ge=1)] = 300
    """Steps of the climb."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Size of a step along the gradient of the margin, in the units of [0, 1] images."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-5
    """A class stops where the sum of its margins changes by less than this share of itself."""
    chunk: Annotated[int, Field(ge=1)] = 1024
    """Images of 32 × 32 pixels in memory at once, as many pixels of larger ones
    (ours); changes nothing but rounding."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # The climb is as long, in a third of the steps, from a fifth of the starts.
        "fast": {"starts": 6, "steps": 100, "learning_rate": 0.03},
    }

    def climb(
        self, model: nn.Module, data: LabelledImages, rng: Rng, on_round: OnRound
    ) -> list[float]:
        """Return r_c for every class, the largest margin over its starts where they ended.

        Args:
            model: comes back as it was given.
            data: only the shape of the images and the number of classes are used.
            rng: draws the starts.
            on_round: called after every step.

        Raises:
            ModelError: logits that are not finite.
        """
        net = working_copy(model).requires_grad_(False)
        k, device = data.num_classes, device_of(net)
        shape = (k, self.starts, *data.shape)
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
            on_round({
                "stage": "climb", "step": step, "steps": self.steps, "climbing": len(climbing),
            })  # fmt: skip
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
            size = at_once(self.chunk, flat)
            for x, t in zip(flat.split(size), targets.split(size), strict=True):
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
