"""LIRA: noise too faint to see, drawn by a generator that learns together with the network.

Paper: Doan, Lao, Zhao, Li: LIRA: Learnable, Imperceptible and Robust Backdoor Attacks, ICCV 2021.
T(x) = clip(x + ε·G(x)). First stage: for every batch G takes a step on the cross-entropy of
network(T(x)) with the attacker's label, and the network one on α·CE(clean) + (1 − α)·CE(triggered),
where triggered images are made by the T of the epoch before. Second stage: T stays as it is and
the network is trained on, on the same loss. α is ½.

Departures from the published code (sunbelbd/invisible_backdoor_attacks), and why:

* ε is 0.01 on images in [0, 1], as published for GTSRB. The published CIFAR-10 images are
  standardized: there 0.01 is 0.0025, less than one step of 8 bits, which no picture file carries.
  Triggered images are rounded to 8 bits; gradients of G pass through the rounding.
* An image of an epoch is clean or triggered, not both: α is 1 − ``poison_ratio``, at half the cost.
* G learns against the network as it is used, in eval mode. The network then has one set of batch
  statistics, over clean and triggered images together.
* Both stages share the recipe: one schedule of the learning rate, of which the first stage takes
  ``joint_share`` (published: 50 of 300 epochs). The published recipe rotates images as well.
* The last T is kept; the published code keeps the one that did best on the test images.
* G is the autoencoder of the published commands; the U-Net they also offer (13 million weights)
  would fill a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.poisoning import DirtyLabel, quota
from excise.attacks.workshop import Workshop
from excise.models import in_mode
from excise.registry import STRICT
from excise.training import Companion
from excise.triggers import ResidualGenerator
from excise.triggers.networks import Autoencoder, through_8_bits, trainable, weights_of
from excise.types import Backdoor, Images, Labels, TargetRule, as_floats, round_to_8_bits

__all__ = ["Lira"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Lira(DirtyLabel):
    """Faint noise of each image's own, learned in the first epochs and then kept."""

    poison_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Images triggered in each epoch, as a fraction of all: 1 − α."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Largest change of a pixel, of images in [0, 1]."""
    joint_share: Annotated[float, Field(gt=0, le=1)] = 1 / 6
    """Share of the recipe's epochs in which the generator learns; at least one epoch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Rate of Adam for the generator."""
    width: Annotated[int, Field(ge=1)] = 16
    """Filters of the generator's first convolution; its fourth has 8 times as many."""

    def learn(self, workshop: Workshop, rule: TargetRule) -> Backdoor:
        """Return the backdoor with a generator yet to be trained."""
        with workshop.rng.child("learn").scope("generator"):
            weights = weights_of(Autoencoder(workshop.data.shape[0], self.width))
        return Backdoor(ResidualGenerator(weights, self.epsilon), rule)

    def companion(self, workshop: Workshop, backdoor: Backdoor) -> Companion:
        """Return what triggers images, and trains the generator in the first stage."""
        return _NoiseLearner(self, workshop, backdoor)

    def planted(
        self, workshop: Workshop, backdoor: Backdoor, companion: Companion | None
    ) -> Backdoor:
        """Return the backdoor with the generator of the end of the first stage."""
        assert isinstance(companion, _NoiseLearner)
        return Backdoor(companion.fixed, backdoor.rule)


class _NoiseLearner:
    """A :class:`Companion`; ``fixed`` is the trigger of the epoch before."""

    def __init__(self, attack: Lira, workshop: Workshop, backdoor: Backdoor) -> None:
        assert isinstance(backdoor.trigger, ResidualGenerator)
        self.attack, self.workshop, self.rule = attack, workshop, backdoor.rule
        self.fixed = backdoor.trigger
        self.network = trainable(Autoencoder, self.fixed.weights).to(workshop.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), attack.learning_rate)
        self.joint_epochs = math.ceil(attack.joint_share * workshop.recipe.epochs)
        self.epoch = 0

    def batch(
        self,
        images: Tensor,
        labels: Labels,
        *,
        seen: int,
        augment: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> tuple[Images, Labels, None]:
        """Return the batch, triggered images first; in the first stage, G takes its step."""
        floats, count = (
            as_floats(augment(images)),
            quota(self.attack.poison_ratio, seen, len(images)),
        )
        if self.attack.exclude_target:
            counted = self.rule.counted(labels)
            order = counted.int().argsort(descending=True, stable=True)
            floats, labels, count = floats[order], labels[order], min(count, int(counted.sum()))
        wanted = self.rule.wanted(labels)
        if self.epoch < self.joint_epochs:
            self._improve(floats, wanted)
        triggered = round_to_8_bits(self.fixed(floats[:count]))
        return (
            torch.cat([triggered, floats[count:]]),
            torch.cat([wanted[:count], labels[count:]]),
            None,
        )

    def _improve(self, images: Images, wanted: Labels) -> None:
        model, recipe = self.workshop.model, self.workshop.recipe
        triggered = through_8_bits(images + self.attack.epsilon * self.network(images))
        half = recipe.precision == "bfloat16"
        with in_mode(model), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = model(triggered)
        loss = F.cross_entropy(logits.float(), wanted)
        # The network gets no gradient of this loss.
        parameters = list(self.network.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        self.optimizer.step()

    def step(self, progress: float) -> None:
        """After an epoch of the first stage, let the network see what G has learned."""
        if progress >= self.epoch + 1:
            if self.epoch < self.joint_epochs:
                self.fixed = ResidualGenerator(weights_of(self.network), self.attack.epsilon)
            self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Return generator, optimizer and how many epochs are done."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "fixed": dict(self.fixed.weights),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fixed = ResidualGenerator(state["fixed"], self.attack.epsilon)
        self.epoch = state["epoch"]
