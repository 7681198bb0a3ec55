"""Grad-Prune: prune the filters an unlearning gradient points at, then fine-tune.

Paper: Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: Unlearning Backdoor Attacks through
Gradient-Based Model Pruning, DSN-W 2024 (arXiv 2405.03918). Defaults are those of the published
CIFAR-10 configuration.

Unlearning loss     L_u = CE(f(T(x)), y), triggered image, true label
Filter score        ξ_{l,i} = ‖∂L_u/∂W_{l,i}‖₁ / numel(W_{l,i}), ranked over all layers

Departures from the published script, and why (docs/methods/grad-prune.md shows the effect of each):

1. A pruned filter loses weight, bias, and γ and β of the batch norm it alone feeds (found by
   tracing). The script zeroes a row of whatever parameter comes next, which on PreActResNet-18
   gates whole residual streams or erases a row of the classifier, and it leaves β.
2. Pruning runs in eval mode; in the script batch-norm statistics absorb triggered images.
3. A pruned filter is no candidate any more and stays zero in fine-tuning (``hold_mask``).
4. Losses are means over images, weighted by batch size, not sums of batch means.
5. The accuracy threshold compares whole numbers of correct images.
6. Squeeze-excite convolutions are left out unless asked: a silenced gate is ½, not 0.
7. Fine-tuning is capped at 200 epochs and says when the cap was hit; the script has no cap.
8. No test image is seen; the script evaluates on the test set every round.

Measured: docs/methods/grad-prune.md, rebuilt by ``python benchmarks/grad_prune_cifar10.py``.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from excise.models import Mask, Unit, apply_edits, convolutions, finished, silence, working_copy
from excise.registry import STRICT
from excise.scores import mean_absolute_gradient
from excise.seeding import Rng
from excise.training import Paired, Stopwatch, recorded, tune_on_pairs
from excise.training.pairs import notes_of, told
from excise.types import DefenderData, Edit, Edits, Inverter, OnRound, Repair, Row, ignore_round

__all__ = ["GradPrune"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GradPrune:
    """Grad-Prune (Dunnett et al. 2024): gradient-guided pruning, then fine-tuning."""

    inverter: Inverter
    """Recovers the trigger; ``Oracle(trigger)`` is the paper's assumption."""
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """τ: pruning stops once validation accuracy fell by this much, absolute."""
    patience: Annotated[int, Field(ge=0)] = 10
    """P: rounds without a lower unlearning loss after which pruning stops."""
    tune_patience: Annotated[int, Field(ge=0)] = 10
    """P_t: epochs without a lower validation loss after which fine-tuning stops; 0: none."""
    max_tune_epochs: Annotated[int, Field(ge=0)] = 200
    """Epochs after which fine-tuning stops in any case (ours; the paper has no cap)."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step, in both stages."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """SGD learning rate of fine-tuning."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum of fine-tuning."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """SGD weight decay of fine-tuning."""
    hold_mask: bool = True
    """Keep pruned filters at zero in fine-tuning."""
    include_gates: bool = False
    """Also prune squeeze-excite convolutions."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a pruned and fine-tuned copy of ``model``.

        Raises:
            DataError: no validation images.
            ModelError: the network has no convolution.
        """
        held = data.held_out("Grad-Prune")
        units = convolutions(model, data.train, "Grad-Prune", include_gates=self.include_gates)
        clock = Stopwatch()
        found = self.inverter.fit(model, data, rng.child("invert"), on_round=on_round)
        assumed = told(found)
        clock.lap("invert")
        worked = working_copy(model)
        if not found:
            none = ("No trigger was recovered.", *notes_of(found))
            return Repair(finished(worked, model), (), (), notes=none, seconds=clock.seconds)
        train, validation = (Paired.of(part, found, worked) for part in (data.train, held))
        edits, rounds, notes = self._prune(model, units, train, validation, on_round)
        clock.lap("prune")
        apply_edits(worked, edits, units)
        tuned = tune_on_pairs(
            worked, train, validation, rng.child("tune"), learning_rate=self.learning_rate,
            momentum=self.momentum, weight_decay=self.weight_decay, batch_size=self.batch_size,
            patience=self.tune_patience, max_epochs=self.max_tune_epochs,
            hold=Mask(worked, edits, units) if self.hold_mask else None, on_round=on_round,
        )  # fmt: skip
        clock.lap("tune")
        history, notes = (*rounds, *tuned.history), (*notes, *tuned.notes)
        done = finished(worked, model)
        return Repair(done, edits, history, assumed, notes, clock.seconds, tuple(found))

    def _prune(
        self, given: nn.Module, units: tuple[Unit, ...], train: Paired, validation: Paired,
        on_round: OnRound,
    ) -> tuple[Edits, list[Row], tuple[str, ...]]:  # fmt: skip
        """Cut one filter a round; return the cuts that led to the lowest validation L_u."""
        model = working_copy(given).requires_grad_(False)
        weights = [model.get_parameter(f"{unit.layer}.weight").requires_grad_() for unit in units]
        filter_at = [(unit, index) for unit in units for index in range(unit.filters)]
        candidates = torch.ones(len(filter_at), dtype=torch.bool, device=weights[0].device)

        correct, best = validation.correct_and_unlearning_loss(model, self.batch_size)
        # a > a₀ − τ in whole images; 1e-9 keeps 0.1 × 30 from allowing a fourth.
        floor = correct - math.ceil(self.max_accuracy_drop * len(validation) - 1e-9)
        cuts: list[Edit] = []
        rounds: list[Row] = []
        notes: tuple[str, ...] = ()
        kept = waited = 0
        while correct > floor and waited < self.patience:
            gradient = train.unlearning_gradient(model, weights, self.batch_size)
            scores = mean_absolute_gradient(gradient).masked_fill(~candidates, 0)
            chosen = int(scores.argmax())  # of equals the first: lowest layer, then filter
            score = float(scores[chosen])
            if not 0 < score < math.inf:
                notes = (f"Pruning stopped: the highest filter score is {score}.",)
                break
            unit, index = filter_at[chosen]
            silence(model, unit, [index])
            candidates[chosen] = False
            cuts.append(Edit("silence", unit.layer, index, len(cuts) + 1))

            correct, loss = validation.correct_and_unlearning_loss(model, self.batch_size)
            if loss < best and correct > floor:
                best, kept, waited = loss, len(cuts), 0
            else:
                waited += 1
            rounds.append({
                "stage": "prune", "round": len(cuts), "layer": unit.layer, "index": index,
                "score": score, "accuracy": correct / len(validation),
                "unlearning_loss": recorded(loss), "waited": waited,
            })  # fmt: skip
            on_round(rounds[-1])
        return tuple(cuts[:kept]), rounds, notes
