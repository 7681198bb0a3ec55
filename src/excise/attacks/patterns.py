"""How Input-aware's two networks are trained: the mask first, the pattern beside the victim.

Paper, symbols and departures: :mod:`excise.attacks.input_aware`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from excise.attacks.poisoning import quota
from excise.attacks.workshop import Workshop
from excise.models import in_mode
from excise.training.fit import batches_of
from excise.triggers import InputAwarePattern
from excise.triggers.input_aware import mixed, sharpened
from excise.triggers.networks import Pyramid, rebuilt, through_8_bits, trainable, weights_of
from excise.types import Backdoor, Images, Labels, as_floats, round_to_8_bits

if TYPE_CHECKING:
    from excise.attacks.input_aware import InputAware

__all__ = ["PatternLearner", "diversity", "trained_mask"]

State = dict[str, Tensor]

#: Where the rate falls to a tenth, as published: epochs 10 and 20 of 25; 200 to 500 of 600.
MASK_MILESTONES = (10 / 25, 20 / 25)
PATTERN_MILESTONES = (200 / 600, 300 / 600, 400 / 600, 500 / 600)


def diversity(images: Images, others: Images, made: Tensor, made_of_others: Tensor) -> Tensor:
    """Return the mean of ‖x − x'‖ / ‖f(x) − f(x')‖, small where different images get different f.

    Args:
        images: ``(n, c, h, w)``.
        others: the x', of the same shape.
        made: the f(x), ``(n, k, h, w)``.
        made_of_others: the f(x').
    """

    def distance(one: Tensor, other: Tensor) -> Tensor:
        # The root has no gradient at 0, where two masks are equal.
        return ((one - other).square().mean((1, 2, 3)) + 1e-14).sqrt()

    return (distance(images, others) / distance(made, made_of_others)).mean()


def trained_mask(attack: InputAware, workshop: Workshop) -> State:
    """Return the weights of the mask network; an interrupted training goes on at its epoch."""
    rng, data = workshop.rng.child("learn"), workshop.data.to(workshop.device)
    with rng.scope("mask"):
        network = Pyramid(data.shape[0], 1, attack.width).to(workshop.device)
    network.to(memory_format=torch.channels_last)
    half = workshop.recipe.precision == "bfloat16"
    optimizer = torch.optim.Adam(network.parameters(), attack.learning_rate, betas=(0.5, 0.9))

    def train(epoch: int) -> State:
        optimizer.param_groups[0]["lr"] = _rate(attack, epoch / attack.mask_epochs, MASK_MILESTONES)
        generator = rng.torch(f"mask/{epoch}", workshop.device)
        figures = []
        for index in batches_of(len(data), workshop.recipe.batch_size, generator):
            images = as_floats(data.images[index])
            with torch.autocast(workshop.device.type, torch.bfloat16, enabled=half):
                maps = network(images)
            masks = sharpened(maps.float())
            apart = diversity(images, images.roll(-1, 0), masks, masks.roll(-1, 0))
            price = (masks - attack.mask_density).relu().mean()
            loss = attack.mask_sparsity * price + attack.mask_diversity * apart
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            figures.append(torch.stack([loss.detach(), masks.detach().mean()]))
        return _packed(network, optimizer) | {"figures": torch.stack(figures).mean(0)}

    for epoch in range(attack.mask_epochs):
        row: dict[str, Any] = {"stage": "mask", "epoch": epoch + 1, "epochs": attack.mask_epochs}

        def compute(epoch: int = epoch) -> State:
            return train(epoch)

        def report(state: State, row: dict[str, Any] = row) -> dict[str, Any]:
            loss, covered = state["figures"].tolist()
            return {**row, "loss": loss, "covered": covered}

        with torch.enable_grad():
            _unpack(workshop.once(f"mask-{epoch + 1}", compute, report), network, optimizer)
    return weights_of(network)


class PatternLearner:
    """Triggers part of every batch and trains the generator: a :class:`Companion`."""

    def __init__(self, attack: InputAware, workshop: Workshop, backdoor: Backdoor) -> None:
        assert isinstance(backdoor.trigger, InputAwarePattern)
        self.attack, self.workshop, self.rule = attack, workshop, backdoor.rule
        self.mask_weights = backdoor.trigger.mask
        self.mask = rebuilt(Pyramid, backdoor.trigger.mask).to(workshop.device)
        self.network = trainable(Pyramid, backdoor.trigger.generator).to(workshop.device)
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), attack.learning_rate, betas=(0.5, 0.9)
        )

    def batch(
        self,
        images: Tensor,
        labels: Labels,
        *,
        seen: int,
        augment: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> tuple[Images, Labels, Tensor | None]:
        """Return the batch: own triggers first, cross triggers next, the rest clean."""
        floats, n = as_floats(augment(images)), len(images)
        own = quota(self.attack.poison_ratio, seen, n)
        if self.attack.exclude_target:
            counted = self.rule.counted(labels)
            order = counted.int().argsort(descending=True, stable=True)
            floats, labels, own = floats[order], labels[order], min(own, int(counted.sum()))
        # Both numbers are rounded: together they may be one more than there are.
        cross = min(quota(self.attack.cross_ratio, seen, n), n - own)
        # Whose trigger each image gets: its own, or its neighbor's. Two at least, for batch norm.
        whose = torch.arange(max(own + cross, 2), device=floats.device)
        whose[own:] += 1
        sources = floats[whose % n]
        patterns = self.network(sources)
        masks = sharpened(self.mask(sources))
        count = own + cross
        triggered = mixed(floats[:count], patterns[:count], masks[:count])
        pairs = min(own, cross)
        extra = None
        if pairs:
            one, other = slice(pairs), slice(own, own + pairs)
            apart = diversity(sources[one], sources[other], patterns[one], patterns[other])
            extra = self.attack.diversity * apart
        return (
            torch.cat([through_8_bits(triggered), floats[count:]]),
            torch.cat([self.rule.wanted(labels[:own]), labels[own:]]),
            extra,
        )

    def step(self, progress: float) -> None:
        """Take a step with the generator, on the gradients of network and diversity."""
        done = progress / self.workshop.recipe.epochs
        self.optimizer.param_groups[0]["lr"] = _rate(self.attack, done, PATTERN_MILESTONES)
        self.optimizer.step()
        if not self.attack.accumulate:
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return generator, optimizer and gradients."""
        gradients = [parameter.grad for parameter in self.network.parameters()]
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": gradients,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
            parameter.grad = gradient

    def trigger(self) -> InputAwarePattern:
        """Return the trigger as it is now."""
        return InputAwarePattern(weights_of(self.network), self.mask_weights)

    def cross_accuracy(self, limit: int = 1000) -> float:
        """Return the fraction of training images that keep their label under a neighbor's trigger.

        Args:
            limit: how many images to try.
        """
        data = self.workshop.data
        some = data.subset(torch.arange(min(limit, len(data)))).to(self.workshop.device)
        right = 0
        with in_mode(self.workshop.model), in_mode(self.network), torch.no_grad():
            for images, labels in some.batches(100):
                others = images.roll(-1, 0)
                crossed = mixed(images, self.network(others), sharpened(self.mask(others)))
                logits = self.workshop.model(round_to_8_bits(crossed))
                right += int((logits.argmax(1) == labels).sum())
        return right / len(some)


def _rate(attack: InputAware, done: float, milestones: Sequence[float]) -> float:
    passed: int = sum(done >= milestone for milestone in milestones)
    return attack.learning_rate * 0.1**passed


def _packed(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    state = {f"network/{name}": value.clone() for name, value in network.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"{number}/{name}": value for name, value in moments.items()}
    return state


def _unpack(state: State, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    moments: dict[int, State] = {}
    weights: State = {}
    for key, value in state.items():
        part, _, name = key.partition("/")
        if part == "network":
            weights[name] = value
        elif part.isdigit():
            moments.setdefault(int(part), {})[name] = value
    network.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
