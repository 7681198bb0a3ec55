"""NPD: plug a small layer, the neural polarizer, into the network; it filters triggers out.

Paper: Zhu, Wei, Zha, Wu: Neural Polarizer: A Lightweight and Effective Backdoor Defense via
Purifying Poisoned Features, NeurIPS 2023 (arXiv 2306.16697). The network f is frozen; the polarizer
g is a 1×1 convolution that starts as the identity, and a batch norm, before a late layer.

Warm-up        min_g CE(f_g(x), y)
Inner problem  t = the best class of f_g(x) but y;  x' = clip(x + δ), ‖δ‖₂ ≤ ρ, sign steps that
               lower CE(f_g(x'), t), until most images of the batch are called t
Outer problem  min_g λ₁ · CE(f_g(x), y) + λ₂ · CE(f_g(x'), ŷ) − λ₃ · ln(1 − p_s(x')) − λ₄ ·
               ln(1 − p_t(x')), where ŷ is what f_g says of x and s the best class of x' but y

Departures from the authors' code, and why:

1. The layer is found by tracing: the last convolution, gates aside, that a batch norm of its own
   follows (or, where none has one, the last). That gives what the authors name: on PreActResNet-18
   layer4.1.conv1, VGG-19-BN features.49, MobileNetV3 features.16.0, EfficientNet-B3 features.8.0.
2. The polarizer becomes part of the network and is saved with it; the authors use a hook.
3. ln(1 − p) is computed from logits; the authors add 1e-4 to 1 − p, which ends the gradient of the
   images that need it most.
4. A network whose only convolution sees the image, as a transformer's, is refused: there is no
   late layer with channels. One can be named.

On pre-activation ResNets that layer sees one branch of the last block, and the shortcut carries a
trigger past it. Before layer4.0.bn1, through which everything passes, the tiny network of the
contract tests loses its trigger (ASR 1.00 to .02; before layer4.1.conv1 to .62): see ``layer``.

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

from excise.errors import DataError
from excise.models import dtype_of, finished, working_copy
from excise.models.late_layer import late_layer, plugged
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import descend, train_epochs
from excise.training.runner_up import best_but, runner_up_examples
from excise.training.unlikelihood import unlikelihood
from excise.types import DefenderData, Edit, Images, Labels, OnRound, Repair, Row, ignore_round

__all__ = ["NPD"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NPD:
    """Neural Polarizer (Zhu et al. 2023)."""

    layer: str = ""
    """Qualified name of the layer before which the polarizer stands; empty: found by tracing."""
    warm_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs on clean images alone, the only ones in which its batch norm follows the images."""
    warm_rate: Annotated[float, Field(gt=0)] = 1e-4
    """SGD learning rate of the warm-up."""
    epochs: Annotated[int, Field(ge=0)] = 50
    """Epochs with perturbed images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate, constant."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """SGD weight decay."""
    norm: Annotated[float, Field(gt=0)] = 3.0
    """ρ: largest L2 norm of a perturbation of a [0, 1] image; 5 on GTSRB."""
    steps: Annotated[int, Field(ge=1)] = 2
    """Most steps of the inner problem."""
    step_size: Annotated[float, Field(gt=0)] = 0.1
    """Change of a pixel in one of them, of [0, 1], before the projection."""
    enough: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Share of a batch called t above which the inner problem is solved."""
    weights: tuple[float, float, float, float] = (1.0, 0.4, 0.4, 0.4)
    """λ₁ to λ₄; (1, .5, .5, .5) on GTSRB."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with a trained polarizer in it.

        Raises:
            DataError: a single image, of which batch norm has no statistics.
            ModelError: no late convolution, or a named layer that cannot take a polarizer.
        """
        start, images = time.perf_counter(), data.everything()
        if len(images) < 2:
            raise DataError("at least 2 images", got="1", remedy="Give more images a class.")
        layer = self.layer or late_layer(model, images.floats(), "NPD")
        worked = working_copy(model).requires_grad_(False)
        plug = plugged(worked, layer, images.floats())
        own = [*plug.conv.parameters(), *plug.norm.parameters()]
        warm = torch.optim.SGD(own, lr=self.warm_rate)
        optimizer = torch.optim.SGD(
            own, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )

        def warm_up(x: Images, y: Labels, progress: float) -> Tensor:
            plug.norm.train()
            return descend(warm, F.cross_entropy(worked(x.to(dtype_of(worked))), y))

        def outer(x: Images, y: Labels, progress: float) -> Tensor:
            x = x.to(dtype_of(worked))
            moved, said, target = runner_up_examples(
                worked, x, y, norm=self.norm, steps=self.steps, step_size=self.step_size,
                enough=self.enough,
            )  # fmt: skip
            clean, shifted = worked(torch.cat([x, moved])).chunk(2)
            losses = (
                F.cross_entropy(clean, y), F.cross_entropy(shifted, said),
                unlikelihood(shifted, best_but(shifted, y)).mean(),
                unlikelihood(shifted, target).mean(),
            )  # fmt: skip
            terms = [weight * loss for weight, loss in zip(self.weights, losses, strict=True)]
            return descend(optimizer, torch.stack(terms).sum())

        history: tuple[Row, ...] = ()
        notes: tuple[str, ...] = ()
        stages = (("warm", warm_up, self.warm_epochs), ("polarize", outer, self.epochs))
        for stage, step, count in stages:
            ran = train_epochs(
                worked, images, step, rng.child(stage), epochs=count, batch_size=self.batch_size,
                stage=stage, augment=False, training=False, on_round=on_round,
            )  # fmt: skip
            history, notes = history + ran.history, notes + ran.notes
            if ran.diverged:
                break
        seconds = {"polarize": time.perf_counter() - start}
        edits = (Edit("plug", layer, None, 1),)
        return Repair(finished(worked, model), edits, history, notes=notes, seconds=seconds)
