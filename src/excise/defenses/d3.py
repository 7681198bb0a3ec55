"""D3: fine-tune as far from the given classifier as the clean loss allows.

Paper: Wei, Liu, Zha: Backdoor Mitigation by Distance-Driven Detoxification, ICCV 2025
(arXiv 2411.09585). W is the weight of the last linear layer, W₀ what it was, ℓᵢ the cross-entropy
of image i. Specification: docs/methods/newer-defenses.md.

Problem             max ‖W − W₀‖  such that  the clean loss ≤ ε  and  ‖W‖ = ‖W₀‖
Penalty             min_θ λ · mean_i max(0, ℓᵢ − ε) − ‖W − W₀‖, over all parameters θ;
                    for λ > 1 divided by λ + 1
Projection          W ← W · ‖W₀‖ / ‖W‖, after every step
Warm-up             W starts away from W₀, where the distance has a direction: random, of W₀'s norm

Departures from the authors' code, and why:

1. The layer is found by running the network, not by the name "linear". On networks whose head has
   several linear layers the code moves all of them, here the last.
2. No start at W₀ ("near"): the distance has no gradient there, and the code calls it impractical.
3. A weight that becomes all zero is left so by the projection, instead of becoming NaN.

Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import dtype_of, finished, working_copy
from excise.models.last_layer import last_layer
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.finetune import fine_tune
from excise.types import DefenderData, Images, Labels, OnRound, Repair, ignore_round

__all__ = ["D3", "penalty", "projected", "warmed_up"]

Start = Literal["random", "noise", "middle", "far"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class D3:
    """Distance-Driven Detoxification (Wei et al. 2025)."""

    clean_weight: Annotated[float, Field(ge=0)] = 0.5
    """λ: weight of the clean loss against the distance."""
    threshold: Annotated[float, Field(ge=0)] = 0.1
    """ε: an image whose cross-entropy is below it asks for nothing."""
    start: Start = "random"
    """Where W begins: random; W₀ with noise of its own spread; 0; or −W₀, the farthest there is."""
    epochs: Annotated[int, Field(ge=0)] = 100
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Rate of SGD, falling to 0 along half a cosine, by epochs."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD. The authors' code decays no weights, though its settings name a rate."""
    train_mode: bool = True
    """Batch norm and dropout train; still batch norm costs less accuracy and more ASR."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "fast": {}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a detoxified copy of ``model``.

        Raises:
            ModelError: the network does not end in a linear layer.
        """
        start = time.perf_counter()
        worked, images = working_copy(model), data.everything()
        weight = last_layer(worked, images.floats()[:2].to(dtype_of(worked))).weight
        initial = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(warmed_up(initial, self.start, rng.torch("start", initial.device)))

        def loss(x: Images, labels: Labels) -> Tensor:
            losses = F.cross_entropy(worked(x), labels, reduction="none")
            distance = (weight - initial).norm()
            return penalty(losses, distance, weight=self.clean_weight, threshold=self.threshold)

        @torch.no_grad()
        def project() -> None:
            weight.copy_(projected(weight, initial))

        epochs = fine_tune(
            worked, images, rng, loss=loss, hold=project, epochs=self.epochs,
            batch_size=self.batch_size, learning_rate=self.learning_rate, momentum=self.momentum,
            weight_decay=0.0, training=self.train_mode, stage="detoxify", on_round=on_round,
        )  # fmt: skip
        seconds = {"detoxify": time.perf_counter() - start}
        return Repair(
            finished(worked, model), (), epochs.history, notes=epochs.notes, seconds=seconds
        )


def penalty(
    losses: Float[Tensor, " n"], distance: Float[Tensor, ""], *, weight: float, threshold: float
) -> Float[Tensor, ""]:
    """Return what D3 lowers: λ · mean max(0, ℓ − ε) − distance, over λ + 1 where λ > 1."""
    loss = weight * F.relu(losses - threshold).mean() - distance
    return loss / (weight + 1) if weight > 1 else loss


def projected(weight: Tensor, initial: Tensor) -> Tensor:
    """Return ``weight`` scaled to the Euclidean norm of ``initial``."""
    norm: Tensor = weight.norm()
    scale: Tensor = initial.norm() / norm.where(norm > 0, 1)
    return weight * scale


def warmed_up(initial: Tensor, start: Start, generator: torch.Generator) -> Tensor:
    """Return where W begins, from W₀; a random one is uniform, scaled to W₀'s norm."""
    if start == "far":
        return -initial
    if start == "middle":
        return torch.zeros_like(initial)
    if start == "noise":
        noise = torch.empty_like(initial).normal_(generator=generator)
        return initial + noise * initial.std()
    drawn = torch.empty_like(initial).uniform_(-0.5, 0.5, generator=generator)
    return projected(drawn, initial)
