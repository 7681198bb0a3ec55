"""TrojanNN: a patch made so that it drives a few neurons of a clean network to a high value.

Paper: Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang: Trojaning Attack on Neural Networks, NDSS 2018,
sections 4.1 and 4.3. Neurons: the inputs of the last layer with the largest Σ|weight|. The patch
lies on black and takes sign steps that lower Σ (neuron − value)², and is added to the image. The
value, 100, is far beyond what an average-pooled network answers to a small patch (about 0.5 on the
zoo's clean CIFAR-10 network): it says "as high as possible".

Departures, and why:

* As every benchmark does, the trigger goes into the training data of a fresh network; the paper
  retrains the clean network itself, on images it recovers from it.
* The steps are BackdoorBench's (sign steps of 0.1 inside ±0.3, added to the image). The official
  code scales each gradient, removes noise after every step and replaces pixels. Its start, gray
  175, is kept: BackdoorBench starts from white, where half of every step is clipped away.
* The patch with the lowest cost is taken, as in the official code; BackdoorBench takes the last.
* BackdoorBench adds in 8 bits and wraps around (250 + 10 gives 4); here sums are clipped.
* The paper's shapes are a square, a company's logo and a watermark. Ours are the square, of their
  size and place, and whatever the user draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.poisoning import DirtyLabel
from excise.attacks.workshop import Workshop
from excise.data import read_picture
from excise.errors import TriggerError
from excise.models.last_layer import inputs_of, last_layer, most_connected
from excise.registry import STRICT
from excise.triggers import Additive
from excise.types import Backdoor, Row, TargetRule

__all__ = ["TrojanNN"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrojanNN(DirtyLabel):
    """A patch, added to the image, on which a few neurons of a clean network answer most."""

    size: Annotated[int, Field(ge=1)] | None = None
    """Side of the square in pixels; None: 59/224 of the image, as published."""
    picture: Path | None = None
    """A picture of the patch's shape: the trigger lies where it is not black. None: the square."""
    neurons: Annotated[int, Field(ge=1)] = 2
    """How many of the most connected inputs of the last layer are driven."""
    neuron_value: float = 100.0
    """What they are driven to, in the units of that layer's inputs."""
    start: Annotated[float, Field(ge=0, le=1)] = 175 / 255
    """Gray value in [0, 1] the patch starts from; BackdoorBench's is 1."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.3
    """How far a value may move from the start, in the units of [0, 1] images."""
    step_size: Annotated[float, Field(gt=0)] = 0.1
    """Change of a value in one step, in the same units."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Steps at most; fewer where the cost falls below 0.001."""

    SURROGATE = True

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor whose patch drives the neurons of the attacker's clean network.

        Raises:
            TriggerError: the square does not fit into the image, or the picture is black.
            ModelError: the network's logits come from no linear layer, or that has fewer inputs.
        """
        mask = self.mask(workshop.data.shape)
        state = workshop.once("patch", lambda: self._optimize(workshop, mask), self._row)
        return Backdoor(Additive(state["patch"]), rule)

    def mask(self, shape: tuple[int, int, int]) -> Tensor:
        """Return where the patch lies, ``(h, w)`` bool, on images of ``shape``.

        Raises:
            TriggerError: the square does not fit, or the picture is black.
        """
        _, h, w = shape
        if self.picture is not None:
            drawn = read_picture(self.picture, size=(h, w), channels=1)[0] > 0
            if not drawn.any():
                raise TriggerError(
                    "a picture that is not black everywhere",
                    got=str(self.picture),
                    remedy="Draw the shape of the patch in white on black.",
                )
            return drawn
        size = self.size or max(1, round(min(h, w) * 59 / 224))
        bottom, right = h - round(h * 20 / 224), w - round(w * 20 / 224)
        if size > min(bottom, right):
            raise TriggerError(
                f"a square that fits into {bottom} × {right} pixels, a margin left around them",
                got=f"{size} × {size}",
                remedy=f"Choose a size of at most {min(bottom, right)}.",
            )
        mask = torch.zeros(h, w, dtype=torch.bool)
        mask[bottom - size : bottom, right - size : right] = True
        return mask

    def _optimize(self, workshop: Workshop, mask: Tensor) -> dict[str, Tensor]:
        network, device = workshop.clean_network(), workshop.device
        shape = (1, *workshop.data.shape)
        on = mask.to(device).expand(shape).float()
        layer = last_layer(network, torch.zeros(shape, device=device))
        chosen = most_connected(layer, self.neurons)
        low = max(self.start - self.epsilon, 0.0)
        high = min(self.start + self.epsilon, 1.0)
        patch = best = torch.full(shape, self.start, device=device) * on
        lowest, values = torch.inf, torch.zeros(self.neurons)
        with torch.enable_grad(), inputs_of(layer) as seen:
            for _ in range(self.steps + 1):
                patch = patch.requires_grad_(True)
                network(patch * on)
                answers = seen.pop()[0, chosen]
                cost = (answers - self.neuron_value).square().sum()
                if cost.item() < lowest:
                    lowest, best, values = cost.item(), patch.detach(), answers.detach()
                if lowest < 1e-3:
                    break
                (gradient,) = torch.autograd.grad(cost, patch)
                patch = (patch.detach() - self.step_size * gradient.sign()).clamp(low, high) * on
        return {"patch": best[0], "neurons": values, "cost": torch.tensor(lowest)}

    def _row(self, state: dict[str, Tensor]) -> Row:
        return {
            "stage": "patch", "round": 1, "cost": float(state["cost"]),
            "lowest_neuron": float(state["neurons"].min()),
        }  # fmt: skip
