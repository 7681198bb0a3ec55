"""PBE: fine-tune on adversarial images, which behave like triggered ones, and on clean, in turn.

Paper: Mu, Niu, Wang, Wang, Miao, Jin, Hua: Progressive Backdoor Erasing via Connecting Backdoor and
Adversarial Attacks, CVPR 2023 (arXiv 2202.06312), its steps 1 and 2.

Adversarial images  x' = argmax_{|x' − x| ≤ ε} CE(f(x'), y), sign steps of α = ε/5 from x
Step 1              min CE(f(x'), y), one pass
Step 2              min CE(f(x), y), one pass

Departures from the paper and the authors' code, and why:

1. The paper's third step picks clean images out of the poisoned training set for a next round. A
   defender here has no such set; what is left is alternation, as the paper's algorithm and the
   field's benchmark have it. The authors' code without that set takes 3 passes of step 1, then 17
   of step 2.
2. Adversarial images stay in [0, 1]; public code bounds them after normalization or not at all.
3. They are made in eval mode and from the image itself, as the authors do; the benchmark starts at
   random, in whatever mode the network is in.
4. Defaults are the benchmark's, whose alternation this is. The authors' rate and bound (0.001 and
   6/255 in batches of 128) belong to a schedule that a poisoned training set goes on with.

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

from excise.models import dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import descend, train_epochs
from excise.training.perturb import pgd
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["PBE"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PBE:
    """Progressive Backdoor Erasing (Mu et al. 2023), the part that needs clean images alone."""

    rounds: Annotated[int, Field(ge=0)] = 20
    """An adversarial pass and a clean one each (the benchmark's number; the authors take 20 passes
    in all)."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step (the benchmark's; the authors take 128)."""
    learning_rate: Annotated[float, Field(ge=0)] = 0.01
    """Learning rate of SGD, constant (the benchmark's; the authors take 0.001)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; it starts anew with every pass, as in the benchmark."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of SGD, on every parameter."""
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.02
    """ε: largest change of a pixel, of [0, 1] (the benchmark's; the authors take 6/255)."""
    step_share: Annotated[float, Field(gt=0)] = 0.2
    """α/ε: change of a pixel in one step, of ε."""
    steps: Annotated[int, Field(ge=0)] = 7
    """Steps of the search for adversarial images."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model``, fine-tuned in turn; odd epochs of it are adversarial."""
        start = time.perf_counter()
        worked = working_copy(model)
        optimizer = torch.optim.SGD(
            worked.parameters(), lr=self.learning_rate, momentum=self.momentum,
            weight_decay=self.weight_decay,
        )  # fmt: skip

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            images = images.to(dtype_of(worked))
            if progress == int(progress):
                optimizer.state.clear()
            if int(progress) % 2 == 0:
                images = pgd(
                    worked, images, labels, epsilon=self.epsilon, steps=self.steps,
                    step_size=self.step_share * self.epsilon,
                )  # fmt: skip
            return descend(optimizer, F.cross_entropy(worked(images), labels))

        epochs = train_epochs(
            worked, data.everything(), step, rng, epochs=2 * self.rounds,
            batch_size=self.batch_size, stage="alternate", on_round=on_round,
        )  # fmt: skip
        seconds = {"alternate": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )
