"""Re-activation: does a faint pattern, put on triggered images, wake the backdoor again?

Paper: Zhu, Liang, Wu: Breaking the False Sense of Security in Backdoor Defense through
Re-Activation Attack, NeurIPS 2024 (arXiv 2405.16134), the white-box attack.

Attack              δ, one for all images: min over ‖δ‖∞ ≤ ε of mean CE(f(clip(T(x) + δ)), t)
Control             the same search on x, without the trigger (a universal adversarial pattern)
Fails where         the share of held-back images that T(x) + δ sends to t lies above the control's,
                    whole interval above whole interval

Departures from the authors' code, and why:

1. Steps along the gradient's sign, of one size; theirs is plain SGD. Their second loss, which
   pushes down the runner-up class, is left out: cross entropy lowers it as well.
2. T is the recovered trigger, and the images are the defender's; they have the attacker's.
3. The control decides: a network that a pattern of this size fools without any trigger is not
   robust, which is no backdoor. The paper reports it beside the attack.

The similarity of features, :mod:`excise.audit.existence`, is reported and decides nothing.

Measured: docs/audit.md.
"""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.audit.altered import Perturbed
from excise.audit.attacking import check_pair, flips, others, trigger_of
from excise.audit.existence import similarity
from excise.audit.finding import Figure, Finding, nothing, said
from excise.audit.invert_again import fast_inverter
from excise.audit.judging import judged
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.fit import batches_of
from excise.types import (
    DefenderData,
    Images,
    Inverter,
    OnRound,
    RecoveredTrigger,
    ignore_round,
)

__all__ = ["Reactivation"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Reactivation:
    """Search a faint universal pattern that makes the trigger work again (Zhu et al. 2024)."""

    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.05
    """ε: largest change of a value, in the units of [0, 1] images."""
    passes: Annotated[int, Field(ge=1)] = 20
    """How often each image is seen; the authors take 250 steps a batch."""
    step_size: Annotated[float, Field(gt=0)] = 0.01
    """Change of one step, in the same units."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a step."""
    inverter: Inverter = Field(default_factory=fast_inverter)
    """How the trigger is found, where none is known."""

    name: ClassVar[str] = "reactivation"

    def audit(
        self,
        given: nn.Module,
        repaired: nn.Module,
        data: DefenderData,
        rng: Rng,
        *,
        known: RecoveredTrigger | None = None,
        on_round: OnRound = ignore_round,
    ) -> Finding:
        """Return whether the pattern does more with the trigger than without."""
        start = time.perf_counter()
        held = data.held_out("Reactivation")
        check_pair(given, repaired, held)
        old = trigger_of(self.inverter, given, data, rng, known, on_round)
        some = others(data.train, old.target) if old and old.target is not None else None
        if old is None or old.target is None or some is None:
            return nothing(self.name, start, known is not None)
        target = old.target
        net = working_copy(repaired).requires_grad_(False)
        images = some.floats().to(device_of(net), dtype_of(net))
        rates = []
        for number, trigger in enumerate((old, None), 1):
            with torch.no_grad():
                x = images if trigger is None else trigger(images)
            pattern = self.search(net, x, target, rng.child("reactivate"))
            rates.append(flips(net, Perturbed(trigger, pattern), target, held))
            on_round({"stage": "reactivate", "round": number, "rate": rates[-1].value or 0.0})
        attack, control = rates
        values: dict[str, Figure] = {
            "trigger and pattern": attack,
            "pattern alone": control,
            "trigger alone": flips(net, old, target, held),
        }
        alike = similarity(given, repaired, images, old)
        if alike is not None:
            values["similarity of the trigger's features"] = alike
        sentence = (
            f"With a pattern of at most {self.epsilon:g} on it, the trigger steers {said(attack)} "
            f"to {data.train.classes[target]!r}; such a pattern alone {said(control)}."
        )
        passed = judged(attack, control.high, control.value or 0.0)
        return Finding(
            self.name, passed, sentence, values, control.high, time.perf_counter() - start
        )

    def search(self, net: nn.Module, images: Images, target: int, rng: Rng) -> Tensor:
        """Return δ, ``(1, c, h, w)``, that leads the images to ``target``.

        Args:
            net: in eval mode, on the images' device and of their type.
            images: with the trigger on them, or without.
            target: the class.
            rng: draws the start and the order of images.
        """
        delta = torch.empty_like(images[:1])
        delta.uniform_(-self.epsilon, self.epsilon, generator=rng.torch("start", images.device))
        with torch.enable_grad():
            for number in range(self.passes):
                order = rng.torch(f"pass/{number}", images.device)
                for index in batches_of(len(images), self.batch_size, order):
                    delta.requires_grad_(True)
                    logits = net((images[index] + delta).clamp(0, 1)).float()
                    loss = F.cross_entropy(logits, torch.full_like(index, target))
                    (gradient,) = torch.autograd.grad(loss, delta)
                    step = self.step_size * gradient.nan_to_num(0.0).sign()
                    delta = (delta.detach() - step).clamp(-self.epsilon, self.epsilon)
        return delta.detach()
