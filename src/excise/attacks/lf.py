"""LF: a smooth perturbation, of low frequencies only, added to the whole image.

Paper: Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective,
ICCV 2021 (arXiv 2104.03413), section 5. The perturbation v is universal: learned on 100 images so
that adding it changes what the attacker's clean network calls a fifth of them. Image by image, a
targeted DeepFool step dr gives v ← R(S(v + S(dr))), where S is a Gaussian low-pass filter and R
stretches the values to [0, 0.2].

DeepFool works on probabilities, as in the official code (although a comment there says otherwise),
not on logits, as it is defined and as BackdoorBench has it. A sure network's probabilities have
small gradients, so that the steps are large; logit steps are lost in the rescaled v, whose color
stays as the first images chose it. On the clean CIFAR-10 network of the zoo (target 0) the first
pass fools 20 %, with logits 50 passes fool 14 %; BackdoorBench's shipped v fools 11 % there.

Departures from the official code (YiZeng623/frequency-backdoor), and why:

* DeepFool steps from the class the image is in at that moment; there from the first one, so that
  it can stall between the target and a third class.
* The target stays the attacker's; there it moves to the class most images fall into. Under
  all-to-all, or where every image is called the target already, v is pushed to another class, drawn
  from the seed: it need only be smooth and noticed.
* Fooling is counted on clip(x + v), which is what the trigger does.
* There is an end: after ``max_passes`` the best v so far is taken. (BackdoorBench: 50 passes.)
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.attacks.lowpass import rescale, smooth
from excise.attacks.poisoning import DirtyLabel
from excise.attacks.workshop import Workshop
from excise.errors import ModelError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.perturb import deepfool
from excise.triggers import Additive
from excise.types import AllToOne, Backdoor, Images, Row, TargetRule, as_floats

__all__ = ["LF"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LF(DirtyLabel):
    """clip(x + v) with a smooth v in [0, amplitude] that an adversary of a clean network drew."""

    amplitude: Annotated[float, Field(ge=1 / 255, le=1)] = 0.2
    """Largest value of the perturbation, in the units of [0, 1] images; its smallest is 0."""
    smoothing: Annotated[float, Field(ge=0.2)] = 6.0
    """Standard deviation of the Gaussian filter in pixels; it has five times as many taps."""
    fooling_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the images whose class has to change; the search stops there."""
    images: Annotated[int, Field(ge=1)] = 100
    """Training images it is learned on."""
    max_passes: Annotated[int, Field(ge=1)] = 50
    """Passes over them after which the best perturbation so far is taken."""
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    """How much farther than the border of the target DeepFool goes, as a fraction."""
    deepfool_steps: Annotated[int, Field(ge=1)] = 200
    """Steps after which DeepFool gives an image up; it then leaves the perturbation alone."""

    SURROGATE = True

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor whose perturbation fools the attacker's clean network.

        Raises:
            ModelError: nothing moves that network.
        """
        data, rng = workshop.data, workshop.rng.child("learn")
        network = workshop.clean_network()
        drawn = torch.randperm(len(data), generator=rng.torch("images"))[: self.images]
        images = as_floats(data.images[drawn.to(data.device)]).to(workshop.device)
        with torch.no_grad():
            calls = network(images).argmax(1)
        target = _destination(rule, calls, data.num_classes, rng)
        v = best = torch.zeros(data.shape)
        rate = best_rate = 0.0
        for number in range(1, self.max_passes + 1):
            order = torch.randperm(len(images), generator=rng.torch(f"pass/{number}"))
            state = workshop.once(
                f"perturbation-{number}",
                partial(self._pass, network, images, calls, order, v, target),
                partial(self._row, number),
            )
            v, rate = state["v"], float(state["fooling_rate"])
            if rate >= best_rate:
                best, best_rate = v, rate
            if best_rate >= self.fooling_rate:
                break
        if not bool(best.any()):
            raise ModelError(
                "a clean network that some perturbation leads to another class",
                got=f"one that DeepFool leads to class {target} from none of {len(images)} images",
                remedy="Train it longer, or give one with surrogate=.",
            )
        return Backdoor(Additive(best), rule)

    def _pass(
        self, network: nn.Module, images: Images, calls: Tensor, order: Tensor, v: Tensor,
        target: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        v = v.to(images)
        probabilities = nn.Sequential(network, nn.Softmax(1))
        for k in order.tolist():
            moved = images[k : k + 1] + v
            with torch.no_grad():
                fooled = network(moved).argmax(1) != calls[k]
            if fooled:
                continue
            dr, reached = deepfool(
                probabilities, moved, target,
                overshoot=self.overshoot, max_steps=self.deepfool_steps,
            )  # fmt: skip
            if reached:
                step = smooth(dr[0], self.smoothing)
                v = rescale(smooth(v + step, self.smoothing), self.amplitude)
        with torch.no_grad():
            fooled = network((images + v).clamp(0, 1)).argmax(1) != calls
        return {"v": v, "fooling_rate": fooled.float().mean()}

    def _row(self, number: int, state: dict[str, Tensor]) -> Row:
        rate = float(state["fooling_rate"])
        return {
            "stage": "perturbation", "round": number, "rounds": self.max_passes,
            "fooling_rate": rate,
        }  # fmt: skip


def _destination(rule: TargetRule, calls: Tensor, num_classes: int, rng: Rng) -> int:
    """Return the class to push to: the attacker's, if that is one and would change anything."""
    if isinstance(rule, AllToOne) and bool((calls != rule.target).any()):
        return rule.target
    others = [k for k in range(num_classes) if bool((calls != k).any())]
    return others[rng.integer("push", 0, len(others))]
