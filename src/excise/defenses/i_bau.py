"""I-BAU: unlearn a universal perturbation, with the gradient of how it answers to the weights.

Paper: Zeng, Chen, Park, Mao, Jin, Jia: Adversarial Unlearning of Backdoors via Implicit
Hypergradient, ICLR 2022 (arXiv 2110.03735). One δ, (1, c, h, w), stands for the unknown trigger.

Problem             min_θ max_δ CE(f_θ(x + δ), y)
Perturbation        δ from 0 by one pass of SGD on −CE(f(x + δ), argmax f(x)) + c ‖δ‖₂²
Outer loss          L_out = CE(f(x'), y), x' = x with δ added to a hundredth of the batch
Inner step          Φ(δ, θ) = δ − η ∂_δ L_in,  L_in = −CE(f(x₁ + δ), y₁) + c ‖δ‖₂² on the first
                    batch of the round
Hypergradient       v ← 0; K times v ← (∂Φ/∂δ)ᵀ v + ∂_δ L_out; ∂_θ L_out + (∂Φ/∂θ)ᵀ v → Adam

Departures from the authors' code, and why:

1. At least one image of a batch gets δ: the code rounds a hundredth of fewer than 100 down to none.
2. Which images get it is drawn once for each hypergradient.
3. Perturbed pixels stay in [0, 1]; the code lets them leave it, where no image can follow.
4. Batches are drawn anew in every round, and the images' own predictions once.

Rates are in pixels. The authors' network takes pixels as they are; to one that normalizes within,
by a deviation of a quarter, steps of δ are 16 times as large. BackdoorBench perturbs normalized
images.

With 100 images the published batch makes 5 steps in all, and they can go astray: where the inner
problem is not convex (I − η ∂²L_in) grows, v with its K-th power, and the second term swamps the
first. On one development victim it was 19 times larger in round 1, 13,000 times in round 2, and the
network called every image one class; nothing guards against it, as published.
Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import device_of, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import train_epochs
from excise.training.hypergradient import hypergradient
from excise.training.universal import universal_perturbation
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["IBAU"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IBAU:
    """Implicit Backdoor Adversarial Unlearning (Zeng et al. 2022)."""

    rounds: Annotated[int, Field(ge=0)] = 5
    """Passes over the images, each with a new perturbation."""
    iterations: Annotated[int, Field(ge=1)] = 5
    """K: fixed-point iterations of the hypergradient."""
    batch_size: Annotated[int, Field(ge=2)] = 100
    """Images a step; a public benchmark takes 256."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Rate of Adam; a public benchmark takes 1e-4, with AMSGrad."""
    portion: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Fraction of a batch that gets the perturbation, at least one image."""
    inner_rate: Annotated[float, Field(gt=0)] = 0.1
    """η: step of Φ."""
    perturbation_rate: Annotated[float, Field(gt=0)] = 10.0
    """Rate of SGD, for the perturbation."""
    penalty: Annotated[float, Field(ge=0)] = 1e-3
    """c: weight of the perturbation's squared norm, of [0, 1] images."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "fast": {},
        "benchmark": {
            "batch_size": 256, "learning_rate": 1e-4,
            "inner_rate": 0.1 / 16, "perturbation_rate": 10 / 16, "penalty": 16e-3,
        },
    }  # fmt: skip
    """``benchmark`` is BackdoorBench's but for AMSGrad, its rates in our units: it perturbs
    normalized images, by a deviation of a quarter."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return an unlearned copy of ``model``."""
        start = time.perf_counter()
        worked, everything = working_copy(model), data.everything()
        weights = [p for p in worked.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(weights, lr=self.learning_rate)
        images_of_all = everything.floats().to(dtype_of(worked))
        patched = rng.torch("patched", device_of(worked))
        first = (images_of_all, everything.labels)
        delta = torch.zeros_like(images_of_all[:1])

        def f(images: Images) -> Tensor:
            logits: Tensor = worked(images.clamp(0, 1))
            return logits

        def inner(delta: Tensor) -> Tensor:
            images, labels = first
            return self.penalty * delta.square().sum() - F.cross_entropy(f(images + delta), labels)

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            nonlocal delta, first
            images = images.to(dtype_of(worked))
            if progress % 1 == 0:
                first = (images, labels)
                delta = universal_perturbation(
                    f, images_of_all, rng.child(f"perturb/{progress}"), passes=1,
                    rate=self.perturbation_rate, batch_size=self.batch_size, penalty=self.penalty,
                )  # fmt: skip
            gets = torch.zeros(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
            order = torch.randperm(len(images), generator=patched, device=images.device)
            gets[order[: max(1, int(self.portion * len(images)))]] = 1

            gradients, loss = hypergradient(
                inner, lambda delta: F.cross_entropy(f(images + gets * delta), labels), delta,
                weights, rate=self.inner_rate, iterations=self.iterations,
            )  # fmt: skip
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            return loss

        epochs = train_epochs(
            worked, everything, step, rng, epochs=self.rounds, batch_size=self.batch_size,
            stage="unlearn", augment=False, training=False, on_round=on_round,
        )  # fmt: skip
        seconds = {"unlearn": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )
