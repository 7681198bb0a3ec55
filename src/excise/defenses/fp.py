"""Fine-Pruning: cut the features that clean images hardly use, then fine-tune.

Paper: Liu, Dolan-Gavitt, Garg: Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks, RAID 2018 (arXiv 1805.12185). Features F(x), (d,), are the inputs of the last linear
layer; a trigger is believed to use those that are dormant on clean images.

Activation          a_c = mean_x F_c(x) over clean images
Pruning             W_c ← 0, columns of the last layer in ascending order of a_c, ⌈0.01 d⌉ a round,
                    while (acc₀ − acc) / acc₀ < 0.1 on validation images
Fine-tuning         min CE(f(x), y), every parameter; what was cut stays zero

Departures, and why:

1. Columns of the last linear layer are cut, as public code does, not filters of the last
   convolution: the same where a pooled map is what the layer sees, and it needs no convolution. On
   heads of several linear layers the field's benchmark cuts the inputs of the first.
2. The round that breaks the bound is undone; the benchmark keeps it, and takes a higher accuracy
   for a broken bound too. Accuracies are compared as whole numbers of correct images.
3. As there, a feature without a ReLU before it can have a negative mean, and then comes first.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import Mask, apply_edits, dtype_of, finished, working_copy
from excise.models.last_layer import inputs_of, last_layer
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Stopwatch
from excise.training.finetune import fine_tune
from excise.types import DefenderData, Edit, Images, OnRound, Repair, Row, ignore_round

__all__ = ["FP"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FP:
    """Fine-Pruning (Liu et al. 2018)."""

    max_relative_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Pruning stops before validation accuracy fell by this fraction of what it was."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Fraction of all features cut in a round, rounded up."""
    epochs: Annotated[int, Field(ge=0)] = 100
    """Epochs of fine-tuning; 0: none."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate of fine-tuning, falling to 0 along half a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum of fine-tuning."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """SGD weight decay of fine-tuning."""
    hold_mask: bool = True
    """Keep what was cut at zero in fine-tuning."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "fast": {"epochs": 50}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned and fine-tuned copy of ``model``.

        Raises:
            DataError: no validation images.
            ModelError: the network does not end in a linear layer.
        """
        held = data.held_out("Fine-Pruning")
        clock = Stopwatch()
        worked = working_copy(model)
        dtype = dtype_of(worked)
        images, checked = data.train.floats().to(dtype), held.floats().to(dtype)
        layer = last_layer(worked, images[:2])
        name = next(name for name, module in worked.named_modules() if module is layer)
        order = self._features(worked, layer, images).mean(0).argsort(stable=True)
        cut, rounds = self._prune(
            layer, self._features(worked, layer, checked), held.labels, order, on_round
        )
        each = math.ceil(self.share * layer.in_features - 1e-9)
        edits = tuple(
            Edit("feature", name, index, position // each + 1)
            for position, index in enumerate(order[:cut].tolist())
        )
        apply_edits(worked, edits, ())
        clock.lap("prune")
        epochs = fine_tune(
            worked, data.train, rng.child("tune"), epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, momentum=self.momentum,
            weight_decay=self.weight_decay,
            hold=Mask(worked, edits, ()) if self.hold_mask else None, on_round=on_round,
        )  # fmt: skip
        clock.lap("tune")
        return Repair(
            finished(worked, model), edits, (*rounds, *epochs.history), notes=epochs.notes,
            seconds=clock.seconds,
        )  # fmt: skip

    @torch.no_grad()
    def _features(self, model: nn.Module, layer: nn.Linear, images: Images) -> Float[Tensor, "n d"]:
        """Return F(x), what goes into the last layer."""
        with inputs_of(layer) as seen:
            for batch in images.split(self.batch_size):
                model(batch)
        return torch.cat(seen)

    @torch.no_grad()
    def _prune(
        self,
        layer: nn.Linear,
        features: Float[Tensor, "n d"],
        labels: Tensor,
        order: Tensor,
        on_round: OnRound,
    ) -> tuple[int, list[Row]]:
        """Return how many features can be cut within the bound; the layer stays as it is."""
        weight = layer.weight.detach().clone()
        each = math.ceil(self.share * layer.in_features - 1e-9)

        def correct() -> int:
            return int((F.linear(features, weight, layer.bias).argmax(1) == labels).sum())

        first = correct()
        # acc > (1 − drop) · acc₀ in whole images; 1e-9 keeps 0.1 × 30 from allowing a fourth.
        floor = first - math.ceil(self.max_relative_accuracy_drop * first - 1e-9)
        rounds: list[Row] = []
        kept = tried = 0
        right = first
        while right > floor and tried < layer.in_features:
            kept, tried = tried, min(tried + each, layer.in_features)
            weight[:, order[:tried]] = 0
            right = correct()
            rounds.append({
                "stage": "prune", "round": len(rounds) + 1, "features": tried,
                "accuracy": right / len(labels),
            })  # fmt: skip
            on_round(rounds[-1])
        return (tried if right > floor else kept), rounds
