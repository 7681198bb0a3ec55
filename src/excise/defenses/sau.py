"""SAU: unlearn the adversarial examples that the network shares with the backdoored one.

Paper: Wei, Zhang, Zha, Wu: Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared
Adversarial Examples, NeurIPS 2023 (arXiv 2307.10562). h₀ is the network as it was given, frozen;
h is trained; p and p₀ are their softmaxes, and an example is x' = x + δ with |δ| ≤ ε.

Shared examples     max_δ β₁/2 · [CE(h(x'), y) + CE(h₀(x'), y)] − β₂ · JS(p(x'), p₀(x')), sign
                    steps, a term of CE until its network errs, JS until both say one wrong class
Shared risk         L_sh = −½ · [ln Σ_{k≠ỹ} p_k(x') + ln(1 − p_ỹ(x'))], where h₀(x') = ỹ is wrong;
                    0 elsewhere; mean over all images
Unlearning          min_h λ₁ · CE(h(x), y) + λ₂ · CE(h(x'), y) + λ₃ · L_sh

Departures from the authors' code, and why:

1. Perturbed pixels stay in [0, 1]; the code lets them leave it, where no image can follow.
2. The two halves of L_sh are one number; it is computed once, from logits, where nothing has to be
   clamped against ln 0. The code also gives no gradient to examples with p_ỹ below .001.
3. An image whose shared example is found has no gradient any more: it leaves the batch of the inner
   search, and its example is the same as if it had stayed.
4. λ₂, which the code has and sets to 0, is not offered: with it the method is adversarial training.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import dtype_of, finished, in_mode, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import descend, train_epochs
from excise.training.shared import shared_examples
from excise.training.unlikelihood import unlikelihood
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["SAU", "shared_risk"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SAU:
    """Shared Adversarial Unlearning (Wei et al. 2023)."""

    rounds: Annotated[int, Field(ge=0)] = 100
    """Passes over the images, each batch with fresh shared examples."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Rate of Adam (AMSGrad), constant: the authors' code makes a scheduler and never steps it."""
    clean_weight: Annotated[float, Field(ge=0)] = 1.0
    """λ₁: weight of the loss on clean images."""
    shared_weight: Annotated[float, Field(ge=0)] = 1.0
    """λ₃: weight of the shared risk."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.2
    """ε: largest change of a pixel, of [0, 1]; the search starts at x + ε."""
    step_size: Annotated[float, Field(gt=0)] = 0.2
    """Change of a pixel in one step of the search, of [0, 1]."""
    steps: Annotated[int, Field(ge=0)] = 5
    """Steps of the search; 0 leaves it at its start."""
    error_weight: Annotated[float, Field(ge=0)] = 0.01
    """β₁: weight of making both networks err."""
    agreement_weight: Annotated[float, Field(ge=0)] = 1.0
    """β₂: weight of making both say the same."""
    train_mode: bool = False
    """Let batch norm and dropout train; still, as published, costs less accuracy and more ASR."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # Steps in a tenth of the passes: smaller batches.
        "fast": {"rounds": 10, "batch_size": 16},
    }

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return an unlearned copy of ``model``."""
        start = time.perf_counter()
        worked, reference = working_copy(model), working_copy(model).requires_grad_(False)
        optimizer = torch.optim.Adam(worked.parameters(), lr=self.learning_rate, amsgrad=True)

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            images = images.to(dtype_of(worked))
            moved = shared_examples(
                worked, reference, images, labels, epsilon=self.epsilon, steps=self.steps,
                step_size=self.step_size, weights=(self.error_weight, self.agreement_weight),
            )  # fmt: skip
            with torch.no_grad():
                before, fooled = reference(images).argmax(1), reference(moved).argmax(1)
            with in_mode(worked, training=self.train_mode):
                clean, shifted = worked(torch.cat([images, moved])).chunk(2)
            risk = shared_risk(shifted, fooled, (fooled != labels) & (fooled != before))
            loss = self.clean_weight * F.cross_entropy(clean, labels) + self.shared_weight * risk
            return descend(optimizer, loss)

        epochs = train_epochs(
            worked, data.everything(), step, rng, epochs=self.rounds, batch_size=self.batch_size,
            stage="unlearn", augment=False, training=False, on_round=on_round,
        )  # fmt: skip
        seconds = {"unlearn": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )


def shared_risk(
    logits: Float[Tensor, "n k"], wrong: Labels, counted: Bool[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Return L_sh: mean over all images of −ln(1 − p_ỹ) where counted, 0 elsewhere.

    Args:
        logits: of h on the perturbed images.
        wrong: ỹ, what h₀ calls them.
        counted: where ỹ is an error.
    """
    # Σ_{k≠ỹ} p_k = 1 − p_ỹ: both halves are the same.
    return unlikelihood(logits, wrong).masked_fill(~counted, 0).sum() / len(logits)
