"""AWM: shrink the weights that an adversarial universal perturbation makes use of.

Paper: Chai, Chen: One-shot Neural Backdoor Erasing via Adversarial Weight Masking, NeurIPS 2022
(arXiv 2207.04497). M holds a mask in [0, 1] for every single weight of the convolutions.

Perturbation        δ from 0 by SGD on −CE(f_{M⊙θ}(x + δ), argmax f_{M⊙θ}(x)), one δ, (1, c, h, w),
                    for all images; then δ ← δ · min(1, τ / ‖δ‖₁)
Masking             min_M α CE(f_{M⊙θ}(x), y) + (1 − α) CE(f_{M⊙θ}(clip(x + δ)), y) + γ ‖M‖₁,
                    Adam, M clipped to [0, 1] after every step

Departures from the authors' code, and why:

1. A round is so many passes over the images; the code draws as many batches with replacement, of
   which there is none where the defender has fewer images than a batch.
2. The network's own predictions, which the search of δ moves away from, are computed once a round:
   the masks stand still meanwhile.
3. The optional shrinking stage, off by default, is not offered.

One public benchmark masks the channels of batch norms instead (rate 0.01 of SGD, γ 1e-7), which is
another method. Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import convolutions, dtype_of, finished, own_tensors, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Masked, descend, fold, train_epochs
from excise.training.masks import clamp_masks
from excise.training.universal import universal_perturbation
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["AWM", "within"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AWM:
    """Adversarial Weight Masking (Chai and Chen 2022)."""

    outer: Annotated[int, Field(ge=0)] = 20
    """Rounds, each with a new perturbation."""
    inner: Annotated[int, Field(ge=1)] = 5
    """Passes over the images in a round, first for the perturbation, then for the masks."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of Adam, for the masks."""
    clean_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """α: weight of the loss on clean images against that on perturbed ones."""
    sparsity: Annotated[float, Field(ge=0)] = 1e-8
    """γ: weight of the masks' ℓ₁ norm."""
    perturbation_rate: Annotated[float, Field(gt=0)] = 10.0
    """Rate of SGD, for the perturbation."""
    perturbation_norm: Annotated[float, Field(gt=0)] = 1000.0
    """τ: bound of ‖δ‖₁, in the units of [0, 1] images, all pixels together."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # As many steps in a quarter of the passes: smaller batches.
        "fast": {"outer": 5, "batch_size": 32},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with its convolutions' weights masked.

        Raises:
            ModelError: the network has no convolution.
        """
        start = time.perf_counter()
        everything = data.everything()
        units = convolutions(model, everything, "AWM", include_gates=True)
        worked = working_copy(model).requires_grad_(False)
        # The convolution's weight is the first of what belongs to a unit.
        weights = {f"{unit.layer}.weight": own_tensors(worked, unit)[0] for unit in units}
        masks = nn.ParameterList([torch.ones_like(weight) for weight in weights.values()])
        masked = Masked(worked, dict(zip(weights, masks, strict=True)))
        optimizer = torch.optim.Adam(masks.parameters(), lr=self.learning_rate)
        images_of_all = everything.floats().to(dtype_of(worked))
        delta = torch.zeros_like(images_of_all[:1])

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            nonlocal delta
            images = images.to(dtype_of(worked))
            if progress % self.inner == 0:
                frozen = {name: mask.detach() for name, mask in masked.masks.items()}
                found = universal_perturbation(
                    lambda x: masked(x, frozen), images_of_all, rng.child(f"perturb/{progress}"),
                    rate=self.perturbation_rate, passes=self.inner, batch_size=self.batch_size,
                )  # fmt: skip
                delta = within(found, self.perturbation_norm)
            clean, moved = masked(torch.cat([images, (images + delta).clamp(0, 1)])).chunk(2)
            natural, robust = F.cross_entropy(clean, labels), F.cross_entropy(moved, labels)
            norm = torch.stack([mask.abs().sum() for mask in masks]).sum()
            loss = self.clean_weight * natural + (1 - self.clean_weight) * robust
            loss = descend(optimizer, loss + self.sparsity * norm)
            clamp_masks(masked.masks)
            return loss

        # What trains is the masks; the network stays in eval mode.
        epochs = train_epochs(
            masks, everything, step, rng, epochs=self.outer * self.inner,
            batch_size=self.batch_size, stage="mask", augment=False, training=False,
            on_round=on_round,
        )  # fmt: skip
        fold(worked, masked.masks)
        seconds = {"mask": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )


def within(delta: Tensor, norm: float) -> Tensor:
    """Return δ · min(1, norm / ‖δ‖₁)."""
    return delta * (norm / delta.abs().sum().clamp(min=1e-12)).clamp(max=1)
