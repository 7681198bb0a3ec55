"""A trigger for every class, searched for side by side, hopeless classes dropped on the way.

Per class t         min over θ of mean max(CE(f(T_θ(x)), t) − c, 0) + λ_t ‖θ‖
c                   −log of ``confidence``: an image that sure of t pulls no longer
λ_t                 0 until ``patience`` rounds in a row succeed, then ``penalty``; × ``factor``
                    after as many of success, ÷ its power of 1.5 after as many without

A batch holds every class still searching × the images of a round. No class's loss depends on
another class, so each finds what it finds alone. After every ``drop_after`` rounds the better half
stays, until ``keep`` classes are left (:mod:`excise.inversion.halving`). A class's anomaly index is
that of the last round in which all took part: later the few that are left have had more rounds to
become small in, which alone would make them stand out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.inversion.anomaly import anomaly_indices
from excise.inversion.chunks import at_once
from excise.inversion.halving import Halving
from excise.inversion.measure import evidence_of, mean_change
from excise.inversion.penalty import Penalty
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Images,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    Trigger,
    ignore_round,
)

__all__ = ["ClasswiseSearch", "Searched"]


@plain_dataclass(frozen=True, eq=False)
class Searched:
    """What a search has found.

    Args:
        triggers: by class, of the classes that were kept and have one.
        sizes: of every class, after the last round in which all took part: the mean change its
            trigger makes to an image, in pixels; None for a class that had none.
    """

    triggers: Mapping[int, Trigger]
    sizes: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClasswiseSearch(ABC):
    """The fields of the search, and the search; what a trigger is, its inverter says."""

    rounds: Annotated[int, Field(ge=1)] = 300
    """Steps of Adam after which the search ends."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a round, drawn anew each time, each of them for every class."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of Adam on the trigger's numbers, in their unit."""
    success_rate: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A round succeeds from this share of images on, averaged over the last rounds."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """How much of the average of the earlier rounds' shares stays when a round's joins it."""
    confidence: Annotated[float, Field(gt=0, le=1)] = 0.9
    """An image the network gives to the class with this probability gains nothing by more."""
    penalty: Annotated[float, Field(gt=0)] = 0.03
    """λ: weight of the trigger's norm once ``patience`` rounds in a row succeeded; 0 before."""
    factor: Annotated[float, Field(gt=1)] = 1.5
    """λ grows by this, and falls by its power of 1.5."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Rounds in a row before λ changes."""
    stop_patience: Annotated[int, Field(ge=1)] = 100
    """A class stops after so many rounds without a smaller trigger, once λ went up and down."""
    drop_after: Annotated[int, Field(ge=1)] = 50
    """Rounds after which the worse half of the classes leaves, time and again."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Classes that are searched for to the end; those of them that have a trigger are returned."""
    chunk: Annotated[int, Field(ge=1)] = 1024
    """Changed images of 32 × 32 pixels in memory at once, as many pixels of larger ones;
    changes nothing but rounding."""

    @abstractmethod
    def start(self, images: Images, classes: int) -> Float[Tensor, "k ..."]:
        """Return the first numbers θ of every class."""

    @abstractmethod
    def changed(self, images: Images, numbers: Float[Tensor, "a ..."]) -> Float[Tensor, "ab c h w"]:
        """Return every image under every class's trigger, the images of a class side by side."""

    @abstractmethod
    def norms(self, numbers: Float[Tensor, "a ..."]) -> Float[Tensor, " a"]:
        """Return ‖θ‖ of every class: what λ weighs."""

    @abstractmethod
    def trigger(self, numbers: Tensor) -> Trigger:
        """Return the trigger of one class's numbers."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> list[RecoveredTrigger]:
        """Return the triggers of the classes that were kept, the smallest first.

        The training images are searched with; the validation images say how often each works.
        """
        found = self.search(model, data.train, rng, on_round=on_round)
        indices = anomaly_indices(found.sizes)
        recovered = [
            RecoveredTrigger(trigger, t, evidence_of(model, trigger, t, data, indices[t]))
            for t, trigger in found.triggers.items()
        ]
        return sorted(recovered, key=lambda one: one.evidence.size or 0.0)

    def search(
        self,
        model: nn.Module,
        data: LabelledImages,
        rng: Rng,
        *,
        classes: Sequence[int] | None = None,
        on_round: OnRound = ignore_round,
    ) -> Searched:
        """Return the triggers of the classes that were kept, and how the classes compared.

        Args:
            model: comes back as it was given.
            data: the images to change; their labels play no part.
            rng: draws the images of each round.
            classes: those to search for; None: all.
            on_round: called after every round.
        """
        net = working_copy(model).requires_grad_(False)
        images = data.floats().to(device_of(net), dtype_of(net))
        numbers = self.start(images, data.num_classes).requires_grad_()
        optimizer = torch.optim.Adam([numbers], self.learning_rate)
        kept, equal = numbers.detach().clone(), None
        race = Halving(
            [self._penalty() for _ in range(data.num_classes)],
            success_rate=self.success_rate,
            memory=self.memory,
            left=classes,
        )
        for number in range(1, self.rounds + 1):
            searching = race.searching()
            if not searching:
                break
            generator = rng.torch(f"round/{number}", images.device)
            order = torch.randperm(len(images), generator=generator, device=images.device)
            some = images[order[: self.batch_size]]
            # The numbers this round tries; the step after it changes them.
            tried, norms = numbers.detach().clone(), self.norms(numbers.detach()).tolist()
            optimizer.zero_grad(set_to_none=False)
            hits = self._add_gradient(net, some, numbers, race.weights(), searching)
            optimizer.step()
            for t in searching:
                if race.update(t, hits[t] / len(some), norms[t], number):
                    kept[t] = tried[t]
            if number % self.drop_after == 0 and len(race.left) > self.keep:
                equal = equal or self._sizes(images, kept, race)
                race.drop(self.keep)
            on_round({
                "stage": "search", "round": number, "rounds": self.rounds,
                "searching": len(searching), "left": len(race.left), "found": len(race.found()),
            })  # fmt: skip
        sizes = equal or self._sizes(images, kept, race)
        return Searched({t: self.trigger(kept[t].clone()) for t in race.found()}, tuple(sizes))

    def _add_gradient(
        self, net: nn.Module, images: Images, numbers: Tensor, weights: list[float], some: list[int]
    ) -> dict[int, int]:
        """Add the loss's gradient of some classes to ``numbers``; return their hits."""
        b, cap = len(images), -math.log(self.confidence)
        size = max(1, at_once(self.chunk, images) // b)
        hits: dict[int, int] = {}
        weight = images.new_tensor(weights)
        for classes in torch.tensor(some, device=images.device).split(size):
            with torch.enable_grad():
                x = self.changed(images, numbers[classes])  # (a · b, c, h, w), by class
                logits = net(x.contiguous(memory_format=torch.channels_last))
                targets = classes.repeat_interleave(b)
                cross_entropy = F.cross_entropy(logits, targets, reduction="none")
                loss = (cross_entropy - cap).clamp_min(0).sum() / b
                (loss + weight[classes] @ self.norms(numbers[classes])).backward()
            # The largest of logits that are no numbers would be the first.
            reached = (logits.argmax(1) == targets) & logits.isfinite().all(1)
            hits |= dict(zip(classes.tolist(), reached.view(-1, b).sum(1).tolist(), strict=True))
        return hits

    def _sizes(self, images: Images, kept: Tensor, race: Halving) -> list[float | None]:
        return [
            mean_change(self.trigger(kept[t]), images) if t in race.found() else None
            for t in range(len(kept))
        ]

    def _penalty(self) -> Penalty:
        return Penalty(
            self.penalty, start_free=True, factor=self.factor, patience=self.patience,
            stop_patience=self.stop_patience, stop_gain=0.0, give_up=self.rounds,
        )  # fmt: skip
