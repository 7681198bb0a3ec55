"""MM-BM: clamp activations from above, as far down as the network's clean answers allow.

Paper: Wang, Xiang, Miller, Kesidis: MM-BD: Post-Training Detection of Backdoor Attacks with
Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic, S&P 2024 (arXiv 2205.06900),
section on mitigation (MM-BM).

Clamped network     f_b: no channel of a clamped layer gives more than its bound b
Bounds              min over b of MSE(f_b(x), f(x)) + λ Σ over layers ‖b‖₂, on images f gets right;
                    the sum is three times the mean
λ                   × 1.2 after ten epochs at 95 % accuracy or more, ÷ 1.2 below

Departures from the authors' code, and why:

1. A clamp follows every batch norm, or every convolution of a network without any; theirs follow
   the first ReLU and the first two stages of one ResNet. An upper clamp before a ReLU is one after
   it. A block's sum is clamped where each of its two parts is.
2. λ weighs three times the mean of the layers' norms, which is the sum for their three layers. With
   the sum of sixteen, λ = .5 is worth more than all that the logits can lose: every bound falls to
   0 and the network answers one class.
3. An epoch has at least three steps, as their 500 images in batches of 200 have; 100 images in one
   batch would move the bounds by a third of the way.
4. λ moves after epochs 20, 30 and 40, as in their code, counted from 1 here and from 0 there.
5. One benchmark removes its clamps before it returns the network, which is then the given one. Here
   they are part of the network, are saved with it and loaded again.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Annotated, cast

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.errors import DataError, ModelError
from excise.models import BatchNorm, Clamped, add, device_of, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.bounds import lower_bounds
from excise.types import DefenderData, Edit, LabelledImages, OnRound, Repair, ignore_round

__all__ = ["MMBM"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MMBM:
    """MM-BM (Wang et al. 2024): upper bounds on activations, as low as clean answers allow."""

    epochs: Annotated[int, Field(ge=0)] = 50
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=1)] = 200
    """Images a step, fewer where an epoch would have fewer steps than ``least_steps``."""
    least_steps: Annotated[int, Field(ge=1)] = 3
    """Steps an epoch has at least."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Rate of Adam; a benchmark has .001."""
    first_bound: Annotated[float, Field(gt=0)] = 8.0
    """Where every bound starts; a benchmark starts at each layer's largest activation."""
    penalty: Annotated[float, Field(ge=0)] = 0.5
    """λ: weight of the bounds' norms, at first, for three layers."""
    factor: Annotated[float, Field(gt=1)] = 1.2
    """λ is multiplied or divided by it."""
    adapt_every: Annotated[int, Field(ge=1)] = 10
    """Epochs between two changes of λ; the first comes after twice as many."""
    least_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ grows at this accuracy or more in an epoch, on images the network got right before."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with clamps.

        Raises:
            ModelError: a network without convolutions and batch norms, or with clamps already.
            DataError: no image that the network gets right.
        """
        layers = _layers(model)
        start = time.perf_counter()
        worked = working_copy(model)
        images, wanted = _right(worked, data.everything())
        # Their parameters are held; of the whole network the bounds alone move.
        clamps = [add(worked.requires_grad_(False), "clamp", layer) for layer in layers]
        bounds = [cast(Clamped, clamp).bound for clamp in clamps]
        for bound in bounds:
            bound.fill_(self.first_bound).requires_grad_()
        lowered = lower_bounds(
            worked, bounds, images, wanted, rng, epochs=self.epochs,
            batch_size=max(1, min(self.batch_size, math.ceil(len(images) / self.least_steps))),
            learning_rate=self.learning_rate, penalty=self.penalty, factor=self.factor,
            adapt_every=self.adapt_every, least_accuracy=self.least_accuracy, on_round=on_round,
        )  # fmt: skip
        for bound in bounds:
            bound.requires_grad_(False).grad = None
        edits = tuple(Edit("clamp", layer, None, 1) for layer in layers)
        seconds = {"bound": time.perf_counter() - start}
        return Repair(
            finished(worked, model), edits, lowered.history, notes=lowered.notes, seconds=seconds
        )


def _layers(model: nn.Module) -> list[str]:
    """Return the layers to clamp: every batch norm, or without any every convolution."""
    for kind in (BatchNorm, nn.Conv2d):
        if found := [name for name, m in model.named_modules() if isinstance(m, kind)]:
            return found
    raise ModelError(
        "a network with batch norms or convolutions, which MM-BM clamps",
        got=f"{type(model).__name__} without any",
        remedy="Choose another defense.",
    )


@torch.no_grad()
def _right(model: nn.Module, data: LabelledImages) -> tuple[LabelledImages, Float[Tensor, "n k"]]:
    """Return the images that the network gets right, in its type, and its logits."""
    images = data.floats().to(device_of(model), dtype_of(model))
    labels = data.labels.to(images.device)
    logits = torch.cat([model(batch) for batch in images.split(256)])
    right = logits.argmax(1) == labels
    if not right.any():
        raise DataError(
            "an image that the network gets right, for MM-BM to hold on to",
            got=f"{len(data)} images, all called something else",
            remedy="Check the class map: every label must name one output of the network.",
        )
    images = images[right].contiguous(memory_format=torch.channels_last)
    return replace(data, images=images, labels=labels[right]), logits[right]
