"""Relearning: does the old trigger come back faster than a new one of the same size is learned?

Paper: Min, Qin, Zhang, Shen, Cheng: Uncovering, Explaining, and Mitigating the Superficial Safety
of Backdoor Defense, NeurIPS 2024 (arXiv 2410.09838), whose retuning attack this follows.

Lesson              a few clean images and a few with the trigger, labeled t, for a few steps of SGD
Controls            the same network, images, order and steps, but the trigger's pixels in another
                    order, drawn anew for each: P T P⁻¹; where that changes images more, as a warp's
                    does, the share of the change that makes it as large
Cannot be told      where pixels in another order are the same trigger, as a change of colors is
Fails where         when the old trigger steers half of the held-back images, or nine of ten, its
                    rate lies above that of the best control at that step, interval above interval

Departures, and why:

1. The paper needs a clean network to say what is fast: any network learns what it never knew. The
   controls stand for it.
2. Normalization keeps its running statistics: batches are small, and their statistics alone would
   move every rate.
3. The trigger is the recovered one, the images are the defender's.

Measured: docs/audit.md.
"""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.audit.altered import Partly, Shuffled
from excise.audit.attacking import check_pair, flips, others, size_of, trigger_of
from excise.audit.finding import Figure, Finding, nothing, said
from excise.audit.invert_again import fast_inverter
from excise.audit.judging import LEVELS, decided, fastest, steps_to
from excise.models import device_of, dtype_of, working_copy
from excise.rates import Rate
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Images,
    Inverter,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    Trigger,
    ignore_round,
    round_to_8_bits,
)

__all__ = ["Relearning"]

#: Triggers nearer to each other than this share of their size are one trigger.
_SAME = 0.1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Relearning:
    """Teach the repaired network its old trigger, and new ones of the same size."""

    steps: Annotated[int, Field(ge=1)] = 20
    """Updates of the network."""
    poisoned: Annotated[int, Field(ge=1)] = 10
    """Images with the trigger, the same in each step; fewer if there are not so many."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Clean images a step, drawn anew each time."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of SGD with momentum 0.9."""
    controls: Annotated[int, Field(ge=1)] = 2
    """New triggers the old one is compared with."""
    inverter: Inverter = Field(default_factory=fast_inverter)
    """How the trigger is found, where none is known."""

    name: ClassVar[str] = "relearning"

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
        """Return whether the old trigger comes back faster than new ones are learned."""
        start = time.perf_counter()
        held = data.held_out("Relearning")
        check_pair(given, repaired, held)
        old = trigger_of(self.inverter, given, data, rng, known, on_round)
        if old is None or old.target is None or others(data.train, old.target) is None:
            return nothing(self.name, start, known is not None)
        target, label = old.target, data.train.classes[old.target]
        controls = self.others_of_its_size(old, data.train, rng)
        if controls is None:
            sentence = (
                "A trigger of the same size to compare with is made by giving the old one's pixels "
                "another order; here that is the same trigger."
            )
            return Finding(self.name, None, sentence, {}, None, time.perf_counter() - start)
        curves: list[list[Rate]] = []
        for number, trigger in enumerate((old, *controls)):
            curves.append(self.taught(repaired, trigger, target, data, rng.child("relearn")))
            rate = curves[-1][-1].value or 0.0
            on_round({"stage": "relearn", "round": number + 1, "rate": rate})
        passed, step, attack, control = decided(curves[0], curves[1:])
        values: dict[str, Figure] = {
            f"old trigger after {step} steps": attack,
            f"best new trigger after {step} steps": control,
        }
        for level in LEVELS:
            each = [steps_to(level, curve) for curve in curves]
            values[f"steps until the old trigger steers {level:.0%}"] = each[0]
            values[f"steps until a new trigger steers {level:.0%}"] = fastest(each[1:])
        sentence = (
            f"{f'Taught for {step} steps' if step else 'Untaught'}, the repaired network says "
            f"{label!r} of {said(attack)} with the old trigger, and of {said(control)} with "
            "a new trigger of the same size."
        )
        seconds = time.perf_counter() - start
        return Finding(self.name, passed, sentence, values, control.high, seconds)

    def others_of_its_size(
        self, old: Trigger, train: LabelledImages, rng: Rng
    ) -> list[Trigger] | None:
        """Return the controls, which change images as much as ``old``; None if they are ``old``."""
        images = train.floats()
        (_, h, w), size = train.shape, size_of(old, images).value
        found: list[Trigger] = []
        for number in range(1, self.controls + 1):
            order = torch.randperm(h * w, generator=rng.torch(f"control/{number}"))
            shuffled = Shuffled(old, order)
            if _apart(shuffled, old, images) < _SAME * size:
                return None
            larger = size_of(shuffled, images).value
            found.append(Partly(shuffled, size / larger) if larger > size else shuffled)
        return found

    def taught(
        self, repaired: nn.Module, trigger: Trigger, target: int, data: DefenderData, rng: Rng
    ) -> list[Rate]:
        """Return how many held-back images the trigger steers, before and after every step.

        A loss that is not finite ends the lesson.
        """
        net = working_copy(repaired)
        held, some = data.held_out("Relearning"), others(data.train, target)
        assert some is not None
        clean, few = (d.floats().to(device_of(net), dtype_of(net)) for d in (data.train, some))
        labels = data.train.labels.to(clean.device)
        chosen = torch.randperm(len(few), generator=rng.torch("poisoned"))[: self.poisoned]
        with torch.no_grad():
            poisoned = round_to_8_bits(trigger(few[chosen.to(few.device)]))
        wanted = labels.new_full((len(poisoned),), target)
        optimizer = torch.optim.SGD(net.parameters(), self.learning_rate, momentum=0.9)
        curve = [flips(net, trigger, target, held)]
        for number in range(self.steps):
            order = torch.randperm(len(clean), generator=rng.torch(f"step/{number}"))
            index = order[: self.batch_size].to(clean.device)
            with torch.enable_grad():
                logits = net(torch.cat([clean[index], poisoned])).float()
                loss = F.cross_entropy(logits, torch.cat([labels[index], wanted]))
                if not loss.isfinite():
                    break
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            curve.append(flips(net, trigger, target, held))
        return curve


@torch.no_grad()
def _apart(one: Trigger, other: Trigger, images: Images) -> float:
    """Return the L1 norm of what two triggers make different, averaged over images, in pixels."""
    each = [(one(x) - other(x)).abs().flatten(1).sum(1) for x in images.split(256)]
    return float(torch.cat(each).mean())
