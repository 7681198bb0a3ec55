"""FMP: cut the filters whose feature maps, moved by an adversary, move the prediction most.

Paper: Huang, Bu: Adversarial Feature Map Pruning for Backdoor, ICLR 2024 (arXiv 2307.11565).
F_{l,i}(x) is the map (h, w) that filter i of convolution l gives; x, (n, c, h, w), a few images.

Start               x₀ = clip(x + ε s), s = ±1 at random: at x itself the gradient vanishes
Reversed feature    x_{l,i} = clip(x₀ + ε sign ∂/∂x₀ MSE(F_{l,i}(x₀), F_{l,i}(x)))
Score               accuracy of f on (x_{l,i}, y)
Pruning             of the C filters of each convolution those ⌊C / 64⌋ with the lowest score
Fine-tuning         min CE(f(x), y), every parameter

Cost: every filter needs n images through the network twice and back once, filters × images in all;
many filters share a batch, each with a copy of the images of its own. Convolutions of fewer than 64
filters lose none, and are not tried: of a narrow network little or nothing is cut.

Departures from the authors' code, and why:

1. A filter loses weight, bias, and γ and β of the batch norm it alone feeds; the code zeroes
   weight and γ, by the order of modules, and leaves β.
2. What was cut stays zero in fine-tuning (``hold_mask``).
3. Squeeze-excite convolutions are left out: a silenced gate is ½, not 0.
4. Pixels are clipped to [0, 1]; the benchmark's version clips normalized ones.
5. Of equal scores the first filter is cut; the code's order among them is not defined.

Measured: docs/defenses.md.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import Mask, apply_edits, convolutions, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.scores.feature_reverse import Filters, feature_reverse_accuracy, lowest
from excise.seeding import Rng
from excise.training import Stopwatch
from excise.training.finetune import fine_tune
from excise.types import DefenderData, Edit, OnRound, Repair, Row, ignore_round

__all__ = ["FMP"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FMP:
    """Adversarial Feature Map Pruning (Huang and Bu 2024)."""

    one_in: Annotated[int, Field(ge=2)] = 64
    """Of every so many filters tried in a convolution, one is cut."""
    images: Annotated[int, Field(ge=1)] = 32
    """How many images each filter is tried on, drawn at random; all, if there are fewer."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1 / 255
    """ε: change of a pixel in a step, of [0, 1]; there are two."""
    max_filters: Annotated[int, Field(ge=1)] | None = None
    """Filters tried in a convolution, drawn at random (ours, for large networks); None: all."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Images that go through the network together while filters are tried (ours; memory)."""
    epochs: Annotated[int, Field(ge=0)] = 10
    """Epochs of fine-tuning; 0: none."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Images a step of fine-tuning."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """SGD learning rate of fine-tuning, at first."""
    final_rate: Annotated[float, Field(ge=0)] = 1e-4
    """What it falls to along half a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum of fine-tuning; there is no weight decay."""
    hold_mask: bool = True
    """Keep what was cut at zero in fine-tuning."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"published": {}, "fast": {"images": 16}}

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned and fine-tuned copy of ``model``.

        Raises:
            ModelError: the network has no convolution.
        """
        everything = data.everything()
        units = convolutions(model, everything, "FMP")
        clock = Stopwatch()
        worked = working_copy(model).requires_grad_(False)
        device = everything.device
        draws = rng.torch("draws", device)
        order = torch.randperm(len(everything), generator=draws, device=device)
        few = everything.subset(order[: self.images])
        images = few.floats().to(dtype_of(worked))
        signs = torch.randint(0, 2, images.shape, generator=draws, device=device) * 2 - 1
        moved = (images + (self.epsilon * signs).to(images.dtype)).clamp(0, 1)

        filters: Filters = []
        for unit in units:
            drawn = torch.randperm(unit.filters, generator=draws, device=device)
            chosen = sorted(drawn[: self.max_filters].tolist())
            # Where nothing will be cut, nothing is tried.
            filters += [(unit.layer, i) for i in chosen if len(chosen) >= self.one_in]
        rounds: list[Row] = []

        def report(done: int) -> None:
            rounds.append({"stage": "try", "filters": done, "of": len(filters)})
            on_round(rounds[-1])

        scores = feature_reverse_accuracy(
            worked, images, moved, few.labels, filters, self.epsilon, self.chunk, report
        )
        edits: list[Edit] = []
        for position in lowest(filters, scores, self.one_in):
            (layer, index), number = filters[position], len(edits) + 1
            edits.append(Edit("silence", layer, index, number))
            rounds.append({
                "stage": "prune", "round": number, "layer": layer, "index": index,
                "accuracy": float(scores[position]),
            })  # fmt: skip
            on_round(rounds[-1])
        worked.requires_grad_(True)
        apply_edits(worked, tuple(edits), units)
        clock.lap("prune")
        epochs = fine_tune(
            worked, everything, rng.child("tune"), epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate, final_rate=min(self.final_rate, self.learning_rate),
            momentum=self.momentum, weight_decay=0.0,
            hold=Mask(worked, tuple(edits), units) if self.hold_mask else None, on_round=on_round,
        )  # fmt: skip
        notes = epochs.notes
        if not edits:
            notes = (f"No convolution has {self.one_in} filters to try: none was cut.", *notes)
        clock.lap("tune")
        return Repair(
            finished(worked, model), tuple(edits), (*rounds, *epochs.history), notes=notes,
            seconds=clock.seconds,
        )  # fmt: skip
