"""IMS: split the filters by masks into a network without the backdoor and one that has it.

Paper: Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: Backdoor Mitigation via Invertible Pruning
Masks, NeurIPS 2025 (arXiv 2509.15497). Every output channel of a convolution has a mask m and a
selection s in [0, 1], both 1 at first; f is the network as it was given, p and q are softmaxes.

Gate                v(m, s) = g + s (1 − g), g = σ(k (m − ½)); "mask" is f with each channel times
                    v(m, s), "inv" with v(1 − m, s); s = 1 keeps a channel in both
Agreement           A(p, q) = −ln Σ p q;  D(p, q) = −ln(1 − Σ p q)
Perturbations       min_δ A(inv(x+δ), f(x+δ)) + D(f(x+δ), f(x)), one δ an image, AdamW from 0
Stage I             min_{m,s} A(mask(x), f(x)) + D(inv(x), f(x)) + λ mean |1 − s|
Stage II            min_{m,s} A(mask(x), f(x)) + A(mask(x+δ), f(x)) + A(inv(x+δ), f(x+δ))
                    + D(inv(x+δ), f(x)) + D(inv(x), f(x)) + λ mean |1 − s|, with λ = 0, then λ

Departures from the authors' code, and why:

1. The final v(m, s) is multiplied into weight and bias of each filter: an ordinary network. The
   code leaves masks in hooks, which no checkpoint holds.
2. Stage I searches no δ: its loss does not use it, the code only logs it.
3. x + δ stays in [0, 1]; the code bounds |δ| by 1, which bounds nothing.
4. Of transformers the code masks what each block gives, which no weight can hold; here what their
   convolution, the patch embedding, gives: little of the network.

As published the last masks are kept, and AdamW decays them. Measured: docs/defenses.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import convolutions, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import descend, fold, train_epochs
from excise.training.epochs import out_of_patience
from excise.training.invertible import InvertibleMasks, agree, disagree, perturbed
from excise.types import DefenderData, Images, Labels, OnRound, Repair, Row, ignore_round

__all__ = ["IMS"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IMS:
    """Invertible pruning masks with selections (Dunnett et al. 2025)."""

    steepness: Annotated[float, Field(gt=0)] = 20.0
    """k: how sharply a mask is on or off."""
    sparsity: Annotated[float, Field(ge=0)] = 10.0
    """λ: weight of the selections' distance from 1; 0 for transformers."""
    mask_rate: Annotated[float, Field(gt=0)] = 0.02
    """Rate of AdamW, for masks and selections."""
    mask_decay: Annotated[float, Field(ge=0)] = 0.01
    """Its weight decay: torch's default, which the authors' code leaves on."""
    initial_rounds: Annotated[int, Field(ge=0)] = 100
    """Rounds of stage I at most; a round is one step on one random batch."""
    rounds: Annotated[int, Field(ge=0)] = 200
    """Rounds of stage II at most, twice: without and with λ."""
    patience: Annotated[int, Field(ge=0)] = 25
    """A stage ends after more rounds than this without a loss below 0.98 times its lowest."""
    steps: Annotated[int, Field(ge=0)] = 20
    """Steps of the search for a batch's perturbations."""
    perturbation_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Rate of AdamW, for the perturbations, of [0, 1] images."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images a round."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # Fewer, longer steps: masks and perturbations can go as far.
        "fast": {
            "initial_rounds": 30, "rounds": 15, "mask_rate": 0.06, "steps": 5,
            "perturbation_rate": 4e-3, "batch_size": 50,
        },
    }  # fmt: skip

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with its filters scaled by their gates.

        Raises:
            ModelError: the network has no convolution.
        """
        start = time.perf_counter()
        everything = data.everything()
        units = convolutions(model, everything, "IMS", include_gates=True)
        f = working_copy(model).requires_grad_(False)
        masks = InvertibleMasks(f, units, self.steepness)
        rounds: list[Row] = []
        notes: tuple[str, ...] = ()
        for stage, count, weight in (
            ("initial", self.initial_rounds, self.sparsity),
            ("minimize", self.rounds, 0.0),
            ("sparsify", self.rounds, self.sparsity),
        ):
            epochs = train_epochs(
                masks, everything, self._step(f, masks, stage, weight), rng.child(stage),
                epochs=count, batch_size=len(everything), stage=stage, augment=False,
                training=False, enough=out_of_patience(self.patience, 0.98), on_round=on_round,
            )  # fmt: skip
            rounds += epochs.history
            notes += epochs.notes
            if epochs.diverged:
                break
        fold(f, masks.values())
        seconds = {"mask": time.perf_counter() - start}
        return Repair(finished(f, model), (), tuple(rounds), notes=notes, seconds=seconds)

    def _step(
        self, f: nn.Module, masks: InvertibleMasks, stage: str, weight: float
    ) -> Callable[[Images, Labels, float], Tensor]:
        """Return what a round of a stage does, with λ = ``weight``."""
        optimizer = torch.optim.AdamW(
            masks.parameters(), lr=self.mask_rate, weight_decay=self.mask_decay
        )

        def step(images: Images, labels: Labels, progress: float) -> Tensor:
            # All images come, in an order of each round's own: the first are a random batch.
            images = images[: self.batch_size].to(dtype_of(f))
            clean = f(images)
            if stage == "initial":
                loss = agree(masks(images), clean) + disagree(masks(images, inverse=True), clean)
            else:
                moved = perturbed(f, masks, images, self.steps, self.perturbation_rate)
                both, shifted = torch.cat([images, moved]), f(moved)
                mask, mask_moved = masks(both).chunk(2)
                inv, inv_moved = masks(both, inverse=True).chunk(2)
                loss = agree(mask, clean) + agree(mask_moved, clean) + agree(inv_moved, shifted)
                loss = loss + disagree(inv_moved, clean) + disagree(inv, clean)
            loss = descend(optimizer, loss + weight * (1 - masks.selection).abs().mean())
            masks.clip()
            return loss

        return step
