"""NFT: tune nothing but one mask a channel, on mixed images, and bound how far masks may fall.

Paper: Karim, Al Arafat, Khalid, Guo, Rahnavard: Augmented Neural Fine-Tuning for Efficient Backdoor
Purification, ECCV 2024 (arXiv 2407.10052).

Objective           min_m MixUp-CE(f with γ ← m γ) + η · Σ |1 − m| / SPC
Bounds              m of the l-th layer (from 1) in [.8 · e^{−.5 l}, 1]
Result              m folded into γ

Departures from the authors' code, and why:

1. Batch norms keep the statistics they were trained with, in learning as in use: on a hundred
   images their own are noise. The code's train mode moves them.
2. SPC is the mean number of images a class; the code changes it while it runs.
3. An epoch visits every image once; the code's 1,000 are batches of 128 drawn with replacement.
4. Layers are counted in the order of registration, which need not be that of execution.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Masked, channel_masks, cosine, fold, learn_masks
from excise.training.masks import gammas
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["NFT"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NFT:
    """Neural mask fine-tuning (Karim et al. 2024)."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """First SGD rate of the masks (the benchmark: 0.1); momentum is 0.95."""
    final_rate: Annotated[float, Field(ge=0)] = 0.02
    """Rate at the end of half a cosine."""
    epochs: Annotated[int, Field(ge=1)] = 1000
    """Passes over the images (the benchmark: 100)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step."""
    mixing: Annotated[float, Field(gt=0)] = 1.0
    """α of MixUp: λ ~ Beta(α, α)."""
    penalty: Annotated[float, Field(ge=0)] = 0.001
    """η: weight of the masks' distance from 1."""
    first_bound: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Lowest mask is this times e^(−bound_decay · layer)."""
    bound_decay: Annotated[float, Field(ge=0)] = 0.5
    """How fast the bounds fall from layer to layer."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {"epochs": 100, "learning_rate": 0.1},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with masks in its batch norms' scales.

        Raises:
            ModelError: the network has no batch norm.
        """
        start, images = time.perf_counter(), data.everything()
        names = gammas(model, "NFT")
        worked = working_copy(model).requires_grad_(False)
        masks = channel_masks(worked, names)
        bounds = self.bounds(len(names))
        optimizer = torch.optim.SGD(masks.values(), lr=self.learning_rate, momentum=0.95)
        masked, spc = Masked(worked, masks), len(images) / images.num_classes
        generator, mixing = rng.torch("mix", images.device), rng.numpy("mix")

        def loss(batch: Images, labels: Labels) -> Tensor:
            share = float(mixing.beta(self.mixing, self.mixing))
            other = torch.randperm(len(batch), generator=generator, device=batch.device)
            logits = masked(share * batch + (1 - share) * batch[other])
            mixed = share * F.cross_entropy(logits, labels)
            mixed = mixed + (1 - share) * F.cross_entropy(logits, labels[other])
            distance = torch.stack([(1 - mask).abs().sum() for mask in masks.values()]).sum()
            return mixed + self.penalty * distance / spc

        def rate(progress: float) -> float:
            fall = cosine(self.learning_rate - self.final_rate, math.floor(progress), self.epochs)
            return self.final_rate + fall

        @torch.no_grad()
        def keep_bounds() -> None:
            for mask, low in zip(masks.values(), bounds, strict=True):
                mask.clamp_(low, 1)

        # Dropout stays off with the rest: eval mode is what is tuned and what is used.
        epochs = learn_masks(
            masked, images, loss, optimizer, rng, rate=rate, hold=keep_bounds, epochs=self.epochs,
            batch_size=self.batch_size, stage="mask", on_round=on_round,
        )  # fmt: skip
        fold(worked, masks)
        seconds = {"mask": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )

    def bounds(self, layers: int) -> list[float]:
        """Return the lowest mask of every layer, .8 · e^{−.5 l} for l from 1."""
        return [self.first_bound * math.exp(-self.bound_decay * (k + 1)) for k in range(layers)]
