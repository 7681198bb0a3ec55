"""BTI-DBF(U): invert the trigger, unlearn it, and again.

Paper: Xu, Huang, Li, Qin, Ren: Towards Reliable and Efficient Backdoor Trigger Inversion via
Decoupling Benign Features, ICLR 2024. How a trigger is inverted, and what is changed there, stands
in :mod:`excise.inversion.bti_dbf`; from the second round on its generator is led to the target
that was detected after the first: + CE(f(G(x)), t).

Unlearning    min_f CE(f(x̃), y) + MSE(F(x), F(x̃)), where x̃ is G(x) for a tenth of a batch, and
              one more image, and x for the rest

Departures from the authors' code, and why: those of the inversion, and

1. Every image the defender owns is used; nothing is validated.
2. A stage whose loss is no longer finite ends the method; the last good state is kept.

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

from excise.inversion.decoupling import Decoupling, Drawn, Search
from excise.models import device_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Images,
    Labels,
    OnRound,
    RecoveredTrigger,
    Repair,
    ignore_round,
)

__all__ = ["BTIDBFU"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BTIDBFU(Decoupling):
    """BTI-DBF(U) (Xu et al. 2024): alternates trigger inversion and unlearning."""

    rounds: Annotated[int, Field(ge=1)] = 5
    """Rounds of decoupling, inversion and unlearning."""
    unlearn_epochs: Annotated[int, Field(ge=0)] = 30
    """Epochs of unlearning in each round."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Adam rate of unlearning."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a batch, one image more, that gets the generator's trigger."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # The inverter's, of which it says why; fewer rounds.
        "fast": {
            "width": 8, "batch_size": 16, "pretrain_epochs": 0, "mask_epochs": 20,
            "generator_epochs": 30, "rounds": 2, "unlearn_epochs": 10,
        },
    }  # fmt: skip

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return an unlearned copy of ``model``.

        Raises:
            ModelError: the network has no feature map before its pooling.
        """
        start, seconds = time.perf_counter(), {"invert": 0.0, "unlearn": 0.0}
        worked = working_copy(model)
        search = Search(self, worked, data.everything(), rng, on_round)
        optimizer = torch.optim.Adam(worked.parameters(), lr=self.learning_rate)
        fine, target = search.pretrain(), None
        for number in range(1, self.rounds + 1):
            mask, decoupled = search.decouple(number) if fine else (None, False)
            if mask is None or not decoupled or not search.invert(mask, number, target):
                break
            target = search.target() if target is None else target
            seconds["invert"] += time.perf_counter() - start
            start = time.perf_counter()
            fine = self._unlearn(search, optimizer, number)
            seconds["unlearn"] += time.perf_counter() - start
            start = time.perf_counter()
        drawn = Drawn(search.generator.eval().requires_grad_(False))
        found = () if target is None else (RecoveredTrigger(drawn, target),)
        return Repair(
            finished(worked, model), (), tuple(search.history), notes=tuple(search.notes),
            seconds=seconds, triggers=found,
        )  # fmt: skip

    def _unlearn(self, search: Search, optimizer: torch.optim.Optimizer, number: int) -> bool:
        """Step 5, of one round: return whether every loss was finite."""
        search.network.requires_grad_(True)
        generator = search.rng.torch(f"chosen/{number}", device_of(search.network))

        def step(x: Images, y: Labels, progress: float) -> Tensor:
            order = torch.randperm(len(x), generator=generator, device=x.device)
            chosen = order[: int(self.share * len(x) + 1)]
            with torch.no_grad():
                mixed = x.index_copy(0, chosen, search.generator(x[chosen]))
            benign, _ = search.features(x)
            changed, answer = search.features(mixed)
            loss = F.cross_entropy(answer, y) + F.mse_loss(benign, changed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return search.run(search.network, step, "unlearn", number, self.unlearn_epochs)
