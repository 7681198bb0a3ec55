"""Soft-Prune: kernels are cut in part, by the gradient of unlearning, while clean answers stay.

No paper describes this method: it is ours. It goes on from Grad-Prune (Dunnett et al., DSN-W 2024,
arXiv 2405.03918) with any recovered trigger. Measured: docs/methods/soft-prune.md.

Cut first           channels whose batch-norm statistics do not fit clean images, as BNP does
Gates               m ∈ [0, 1], one for every kernel (filter × channel it reads), 1 at first:
                    W_ij ← m_ij W_ij
Clean answers       q(x) = (1 − μ) softmax f(x) + μ e_y, of the given network f and the true label y
Loss                ν H(q(x), f_m(x)) + H(q(x), f_m(x̃)) + κ A(x̃) + min(ρ, λ / gates) Σ (1 − m),
                    H the cross-entropy, A = −(1 − q_t(x)) log(1 − p_t), p = softmax f_m(x̃)
x̃                   clip(x + s (T(x) − x)): T one of the triggers, which leads to class t (where it
                    names none, A = 0), s from [1, boost], both at random

What it does otherwise than Grad-Prune, and why:

1. A gate moves as far as the loss wants, not from 1 to 0, and every image serves both purposes:
   with ten validation images, one image decides whether a whole filter may go.
2. Kernels, not filters, which the trigger shares with what is clean. Gates the loss does not need
   closed are kept open by ρ; by less where there are many, each of which does less.
3. The given network's own answers on clean images are the target: a hundred hard labels overfit.
4. An inverted trigger is the weakest that works: it is made stronger at random; a told one is not.
5. Images of the target class take part in unlearning. Without them the network learns that a
   trigger means any class but the target, and forgets the target class.
6. Clean images count more than triggered ones: few of them say where the gates would do harm. To be
   called the target counts more than to be called another wrong class: that is the backdoor.
7. Batch norm stays as it is, statistics included, but for the channels that are cut first: they
   answer to what no clean image shows, also to a warp no search finds (Zheng et al., NeurIPS 2022).
8. Nothing is stopped by a measurement.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.models import apply_edits, convolutions, dtype_of, finished, working_copy
from excise.registry import STRICT
from excise.scores import divergent_channels
from excise.seeding import Rng
from excise.training import Masked, Stopwatch, channel_masks, cosine, fold, learn_masks
from excise.training.fit import number_of_batches
from excise.training.masks import kernel_masks
from excise.training.pairs import led_astray, notes_of, told, under_one_of
from excise.types import DefenderData, Images, Inverter, Labels, OnRound, Repair, ignore_round

__all__ = ["SoftPrune"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoftPrune:
    """Gradient-guided pruning in part, with any recovered trigger."""

    inverter: Inverter
    """Recovers triggers; ``Oracle(trigger)`` is told the true one."""
    grain: Literal["kernel", "filter"] = "kernel"
    """What has a gate of its own."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Steps of Adam on the gates; the last epoch is finished."""
    batch_size: Annotated[int, Field(ge=2)] = 50
    """Images a step, each of them clean and under a trigger."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """First rate of Adam on the gates; it falls to 0 along half a cosine."""
    penalty: Annotated[float, Field(ge=0)] = 1e-3
    """ρ: what a closed gate costs, at most."""
    total_penalty: Annotated[float, Field(ge=0)] = 20.0
    """λ: what closing all of them costs, at most."""
    label_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """μ: how much the true label counts beside the given network's answer."""
    boost: Annotated[float, Field(ge=1)] = 2.5
    """The most an inverted trigger's change is multiplied by."""
    clean_weight: Annotated[float, Field(gt=0)] = 3.0
    """ν: how much more a clean image counts than a triggered one."""
    target_weight: Annotated[float, Field(ge=0)] = 1.0
    """κ: how much more it counts where a trigger still leads to its class."""
    max_triggers: Annotated[int, Field(ge=1)] = 3
    """Triggers that are unlearned: the first that were found."""
    divergence: Annotated[float, Field(gt=0)] | None = 3.0
    """Standard deviations above its layer's mean from which a channel's divergence has it cut
    before all else; None: cut none. A network without batch norm has none."""
    include_gates: bool = False
    """Also cut squeeze-excite convolutions."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return a copy of ``model`` with some filters made weaker.

        Raises:
            ModelError: the network has no convolution.
        """
        units = convolutions(model, data.train, "Soft-Prune", include_gates=self.include_gates)
        clock = Stopwatch()
        found = self.inverter.fit(model, data, rng.child("invert"), on_round=on_round)
        triggers = tuple(found[: self.max_triggers])
        clock.lap("invert")
        worked = working_copy(model).requires_grad_(False)
        if not triggers:
            why = ("No trigger was recovered, so nothing was cut.", *notes_of(found))
            return Repair(finished(worked, model), (), (), notes=why, seconds=clock.seconds)
        images, given = data.everything(), working_copy(model).requires_grad_(False)
        clean = images.floats().to(dtype_of(worked))
        edits = divergent_channels(worked, clean, self.divergence) if self.divergence else ()
        apply_edits(worked, edits, ())
        masks = channel_masks if self.grain == "filter" else kernel_masks
        gated = Masked(worked, masks(worked, [f"{unit.layer}.weight" for unit in units]))
        size = sum(gate.numel() for gate in gated.masks.values())
        optimizer = torch.optim.Adam(gated.masks.values(), self.learning_rate)
        epochs = -(-self.steps // number_of_batches(len(images), self.batch_size))
        count = itertools.count()

        def loss(x: Images, labels: Labels) -> Tensor:
            with torch.no_grad():
                answers = given(x).softmax(1)
                wanted = answers.lerp(F.one_hot(labels, answers.shape[1]).to(x), self.label_share)
                generator = rng.torch(f"step/{next(count)}", x.device)
                changed, leads = under_one_of(triggers, x, generator, boost=self.boost)
            kept, under = F.cross_entropy(gated(x), wanted), gated(changed)
            astray = self.target_weight * led_astray(under, wanted, leads)
            return self.clean_weight * kept + F.cross_entropy(under, wanted) + astray

        # Eval mode is what is cut and what is used: batch norm's statistics stay as they are.
        tuned = learn_masks(
            gated, images, loss, optimizer, rng, epochs=epochs, batch_size=self.batch_size,
            rate=lambda progress: cosine(self.learning_rate, progress, epochs),
            penalty=min(self.penalty, self.total_penalty / size), stage="gates", on_round=on_round,
        )  # fmt: skip
        fold(worked, gated.masks)
        every = torch.cat([gate.detach().flatten() for gate in gated.masks.values()])
        names = dict.fromkeys(images.classes[t.target] for t in triggers if t.target is not None)
        cut = f"{len(edits)} of the batch norms' channels went first: clean images do not fit them."
        toward = " and ".join(map(repr, names)) or "no class of its own"
        notes = (
            f"Unlearned {len(triggers)} trigger{'s' * (len(triggers) > 1)} toward {toward}.",
            f"{int((every < 0.5).sum())} of {size} {self.grain}s lost more than half of "
            f"their weight; they keep {float(every.mean()):.1%} on average.",
            *([cut] if edits else []),
            *notes_of(found),
            *tuned.notes,
        )
        clock.lap("gates")
        done = finished(worked, model)
        return Repair(done, edits, tuned.history, told(triggers), notes, clock.seconds, triggers)
