"""NAD: fine-tune a teacher, then teach the backdoored network to attend where the teacher does.

Paper: Li, Lyu, Koren, Lyu, Li, Ma: Neural Attention Distillation: Erasing Backdoor Triggers from
Deep Neural Networks, ICLR 2021 (arXiv 2101.05930). F_l are feature maps (n, c, h, w), those of the
student and of the teacher for the same images.

Teacher             the network as given, fine-tuned; then frozen, in eval mode
Attention           A(F) = Σ_c |F_c|^p / ‖Σ_c |F_c|^p‖₂ for each image, (n, h, w)
Distillation        min CE(f(x), y) + Σ_l β_l · mean (A(F_l) − A(F_l^T))²

Departures from the authors' code, and why:

1. Maps are found by running the network: the last before pooling of each of its last three
   resolutions. The code has its own networks, with three; the field's benchmark takes pooled
   features on several networks, whose attention is 1 everywhere, so that nothing is distilled.
2. Maps of one pixel are left out for the same reason. A network with fewer than three larger ones
   gets as many as it has, with the weights of the deepest.
3. The teacher is trained as the student is, with every β = 0, as the authors' page says.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import dtype_of, finished, working_copy
from excise.models.taps import feature_maps, tapped
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import Epochs, Stopwatch, descend, train_epochs
from excise.types import DefenderData, Images, LabelledImages, Labels, OnRound, Repair, ignore_round

__all__ = ["NAD", "attention"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NAD:
    """Neural Attention Distillation (Li et al. 2021)."""

    epochs: Annotated[int, Field(ge=0)] = 20
    """Passes over the images in distillation; the benchmark takes 10."""
    teacher_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes in which the teacher is fine-tuned; the authors say 5 to 10."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step; the benchmark takes 256."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Rate of SGD (Nesterov) in the first two epochs of each stage; the benchmark takes 0.01, which
    costs far less accuracy where a pass is a few steps."""
    later_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate from the third epoch on; from the 21st it is a hundredth of it."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of SGD; the benchmark takes 5e-4."""
    low_weight: Annotated[float, Field(ge=0)] = 500.0
    """β of the largest of the three maps."""
    middle_weight: Annotated[float, Field(ge=0)] = 1000.0
    """β of the map between."""
    high_weight: Annotated[float, Field(ge=0)] = 1000.0
    """β of the last map before pooling."""
    power: Annotated[float, Field(ge=1)] = 2.0
    """p: how much more strong activations count."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        "benchmark": {"epochs": 10, "batch_size": 256, "learning_rate": 0.01, "weight_decay": 5e-4},
    }
    """``benchmark`` is BackdoorBench's; at the official rate a PreActResNet-18 is destroyed."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a distilled copy of ``model``.

        Raises:
            ModelError: the network has no feature maps of more than one pixel.
        """
        clock = Stopwatch()
        student, teacher, every = working_copy(model), working_copy(model), data.everything()
        maps = feature_maps(student, every.subset(torch.arange(1)).floats(), smallest=2)[-3:]
        betas = (self.low_weight, self.middle_weight, self.high_weight)[-len(maps) :]

        def none(images: Images) -> float:
            return 0.0

        taught = self._train(
            teacher, every, none, rng.child("teach"), self.teacher_epochs, "teach", on_round
        )
        clock.lap("teach")
        teacher.requires_grad_(False)
        with tapped(student, maps) as seen, tapped(teacher, maps) as shown:

            def distance(images: Images) -> Tensor:
                with torch.no_grad():
                    teacher(images)
                p, levels = self.power, zip(maps, betas, strict=True)
                return torch.stack([  # β_l · mean (A(F_l) − A(F_l^T))²
                    b * F.mse_loss(attention(seen[m], p), attention(shown[m], p)) for m, b in levels
                ]).sum()  # fmt: skip

            tuned = self._train(
                student, every, distance, rng.child("distill"), self.epochs, "distill", on_round
            )
        clock.lap("distill")
        return Repair(
            finished(student, model), (), (*taught.history, *tuned.history),
            notes=(*taught.notes, *tuned.notes), seconds=clock.seconds,
        )  # fmt: skip

    def _train(
        self, model: nn.Module, data: LabelledImages, distance: Callable[[Images], Tensor | float],
        rng: Rng, epochs: int, stage: str, on_round: OnRound,
    ) -> Epochs:  # fmt: skip
        """Train by cross-entropy plus ``distance``, which is asked after the forward pass."""
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.learning_rate, momentum=self.momentum, nesterov=True,
            weight_decay=self.weight_decay,
        )  # fmt: skip
        later = self.later_learning_rate

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            images, epoch = images.to(dtype_of(model)), math.floor(progress)
            rate = self.learning_rate if epoch < 2 else later if epoch < 20 else later / 100
            return descend(
                optimizer, F.cross_entropy(model(images), labels) + distance(images), rate
            )

        return train_epochs(
            model, data, step, rng, epochs=epochs, batch_size=self.batch_size, stage=stage,
            on_round=on_round,
        )  # fmt: skip


def attention(maps: Float[Tensor, "n c h w"], power: float = 2.0) -> Float[Tensor, "n h w"]:
    """Return A(F): where each image's map is strong, with an ℓ₂ norm of 1."""
    strength = maps.abs().pow(power).sum(1)
    norm: Tensor = torch.linalg.vector_norm(strength, dim=(1, 2), keepdim=True)
    return strength / (norm + 1e-6)
