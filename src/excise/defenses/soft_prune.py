"""Soft-Prune: kernels are cut in part, by the gradient of unlearning, while clean answers stay.

No paper describes this method: it is ours, a first form of trigger-free gradient-guided pruning. It
goes on from Grad-Prune (Dunnett et al., DSN-W 2024, arXiv 2405.03918) with any recovered trigger.

Cut first           channels whose batch-norm statistics do not fit clean images, as BNP does, by
                    ``divergence`` standard deviations
Gates               m ∈ [0, 1], one for every kernel (filter × channel it reads) of every
                    convolution, 1 at first: W_ij ← m_ij W_ij
Clean answers       q(x) = (1 − μ) softmax f(x) + μ e_y, of the given network f and the true label y
Loss                ν H(q(x), f_m(x)) + H(q(x), f_m(x̃)) + ρ Σ (1 − m)
H(q, z)             − Σ_k q_k log softmax(z)_k
x̃                   clip(x + s (T(x) − x)): T one of the triggers, s from [1, boost], both at random

What it does otherwise than Grad-Prune, and why:

1. A gate moves as far as the loss wants, not from 1 to 0: with ten validation images, whether a
   whole filter may go is decided by one image; here no image decides alone, and every image the
   inverter was given is used for both purposes.
2. Kernels, not filters: what answers to the trigger shares its filters with what does not. Gates
   the loss does not need closed are kept open by ρ.
3. The given network's own answers on clean images are the target, and not hard labels: a hundred of
   these overfit.
4. An inverted trigger is the weakest that works; the true one is stronger. So it is made stronger
   at random. A trigger that was told is left as it is.
5. Images of the target class take part in unlearning. Without them the network learns that a
   trigger means any class but the target, and forgets the target class.
6. Clean images count more than triggered ones: few of them say where the gates would do harm.
7. Only weights of convolutions are gated; batch norm stays as it is, statistics included, but for
   the channels that are cut first. These answer to what no clean image shows, whatever it is: a
   warp that no search finds leaves them too (Zheng et al., NeurIPS 2022).

The loss is what is minimized, at a fixed number of steps: nothing is stopped by a measurement.
Measured: docs/methods/soft-prune.md.
"""

from __future__ import annotations

import itertools
import time
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.errors import ModelError
from excise.models import (
    apply_edits,
    dtype_of,
    finished,
    prunable,
    remembering,
    scaled,
    trace,
    working_copy,
)
from excise.registry import STRICT
from excise.scores import divergent_channels
from excise.seeding import Rng
from excise.training import Masked, channel_masks, cosine, fold, set_rate, train_epochs
from excise.training.masks import clamp_masks, kernel_masks
from excise.training.pairs import under_one_of
from excise.training.statistics import input_moments
from excise.types import (
    DefenderData,
    Edit,
    Images,
    Inverter,
    LabelledImages,
    Labels,
    OnRound,
    Repair,
    ignore_round,
)

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
    """ρ: what a closed gate costs."""
    label_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """μ: how much the true label counts beside the given network's answer."""
    boost: Annotated[float, Field(ge=1)] = 2.5
    """The most an inverted trigger's change is multiplied by."""
    clean_weight: Annotated[float, Field(gt=0)] = 3.0
    """ν: how much more a clean image counts than a triggered one."""
    max_triggers: Annotated[int, Field(ge=1)] = 3
    """Triggers that are unlearned, of those found the strongest."""
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
        units = prunable(trace(model, data.train.floats()[:2]), include_gates=self.include_gates)
        if not units:
            raise ModelError(
                "a network with convolutions, whose filters Soft-Prune cuts",
                got=f"{type(model).__name__} without any",
                remedy="Choose a defense that does not prune filters.",
            )
        start = time.perf_counter()
        found = self.inverter.fit(model, data, rng.child("invert"), on_round=on_round)
        triggers = found[: self.max_triggers]
        assumed = ("the true trigger",) if any(t.evidence.told for t in triggers) else ()
        inverted = time.perf_counter()
        worked = working_copy(model).requires_grad_(False)
        if not triggers:
            return Repair(
                finished(worked, model), (), (), seconds={"invert": inverted - start},
                notes=("No trigger was recovered, so nothing was cut.",),
            )  # fmt: skip
        images, given = data.everything(), working_copy(model).requires_grad_(False)
        edits = self._divergent(worked, images)
        apply_edits(worked, edits, ())
        masks = channel_masks if self.grain == "filter" else kernel_masks
        gates = masks(worked, [f"{unit.layer}.weight" for unit in units])
        optimizer = torch.optim.Adam(gates.values(), self.learning_rate)
        gated = Masked(worked, gates)
        epochs = -(-self.steps * min(self.batch_size, len(images)) // len(images))
        count = itertools.count()

        def step(batch: Images, labels: Labels, progress: float) -> Tensor:
            x = batch.to(dtype_of(worked))
            with torch.no_grad():
                answers = given(x).softmax(1)
                wanted = answers.lerp(F.one_hot(labels, answers.shape[1]).to(x), self.label_share)
                generator = rng.torch(f"step/{next(count)}", x.device)
                changed = under_one_of(triggers, x, generator, boost=self.boost)
            kept, unlearned = (F.cross_entropy(gated(z), wanted) for z in (x, changed))
            loss = self.clean_weight * kept + unlearned
            if not loss.isfinite():  # the gates stay as they were, and the epoch is the last
                return loss
            closed = torch.stack([(1 - gate).sum() for gate in gates.values()]).sum()
            optimizer.zero_grad()
            (loss + self.penalty * closed).backward()
            set_rate(optimizer, cosine(self.learning_rate, progress, epochs))
            optimizer.step()
            clamp_masks(gates)
            return loss

        # Eval mode is what is cut and what is used: batch norm's statistics stay as they are.
        tuned = train_epochs(
            worked, images, step, rng, epochs=epochs, batch_size=self.batch_size,
            stage="gates", training=False, on_round=on_round,
        )  # fmt: skip
        final = {name: gate.detach() for name, gate in gates.items()}
        fold(worked, final)
        every = torch.cat([gate.flatten() for gate in final.values()])
        names = dict.fromkeys(images.classes[t.target] for t in triggers if t.target is not None)
        cut = f"{len(edits)} of the batch norms' channels went first: clean images do not fit them."
        notes = (
            f"Unlearned {len(triggers)} trigger{'s' * (len(triggers) > 1)} toward "
            f"{' and '.join(map(repr, names)) or 'no class of its own'}.",
            f"{int((every < 0.5).sum())} of {len(every)} {self.grain}s lost more than half of "
            f"their weight; they keep {float(every.mean()):.1%} on average.",
            *([cut] if edits else []),
            *tuned.notes,
        )
        seconds = {"invert": inverted - start, "gates": time.perf_counter() - inverted}
        return Repair(finished(worked, model), edits, tuned.history, assumed, notes, seconds)

    def _divergent(self, net: nn.Module, images: LabelledImages) -> tuple[Edit, ...]:
        norms = scaled(remembering(net))
        if self.divergence is None or not norms:
            return ()
        x = images.floats().to(dtype_of(net))
        moments = input_moments(net, norms, x, batch_size=500)
        return tuple(divergent_channels(norms, moments, self.divergence))
