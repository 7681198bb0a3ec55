"""Neural Cleanse's search: for every class, the smallest patch that sends all images there.

Paper: Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating
Backdoor Attacks in Neural Networks, S&P 2019, section IV.

Stamped image       x' = (1 − m) ⊙ x + m ⊙ p,   m of shape (1, h, w), p of shape (c, h, w)
Per class t         min over m, p of CE(f(x'), t) + λ_t ‖m‖₁;   m, p = tanh(·) / (2 + 1e-7) + ½
λ_t                 0 until ``patience`` rounds in a row succeed, then ``penalty``; from there
                    × 2 after ``patience`` rounds of success, ÷ 2^1.5 after as many without

Departures from the authors' code, and why:

1. All classes are searched at once: a batch holds every class still searching × the images of a
   step. No class's loss depends on another class, so each finds what it finds alone. A class that
   has stopped leaves the batch.
2. A round is one pass over the images, of at most 1,000, as the authors' takes; with 100 images
   theirs would be ten passes. Images of the class itself take part, as they do there.
3. A class that never succeeded in ``give_up`` rounds leaves too, and has no norm: theirs goes on to
   the end and yields the norm of a mask that does not work.
4. Of a class's masks the one with the smallest norm at the end of a successful round is kept;
   they compare means over the round, which no mask had.
5. Masks stay numbers; theirs go through 8-bit pictures (one benchmark's are stretched there).

Measured: docs/defenses.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.inversion.chunks import at_once
from excise.inversion.masked import Found, MaskedTrigger, squash, stamped
from excise.inversion.penalty import Penalty
from excise.models import device_of, dtype_of, working_copy
from excise.registry import STRICT
from excise.seeding import Rng
from excise.types import Images, LabelledImages, OnRound, Row

__all__ = ["MaskSearch"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaskSearch:
    """The fields of Neural Cleanse's search, which its inverter, scanner and defense share."""

    rounds: Annotated[int, Field(ge=1)] = 1000
    """Rounds after which every class stops; most stop long before. A benchmark has 80."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a step, each of them for every class."""
    round_images: Annotated[int, Field(ge=1)] = 1000
    """A round takes this many images at most, drawn anew each time."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Rate of Adam (betas .5 and .9) on what the tanh is taken of."""
    success_rate: Annotated[float, Field(gt=0, le=1)] = 0.99
    """A round succeeds from this share of stamped images on; a benchmark has .98."""
    penalty: Annotated[float, Field(gt=0)] = 1e-3
    """λ: first weight of the mask's norm."""
    start_free: bool = True
    """Begin with λ = 0, as the authors do; a benchmark begins with ``penalty``."""
    factor: Annotated[float, Field(gt=1)] = 2.0
    """λ grows by this, and falls by its power of 1.5."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Rounds in a row before λ changes."""
    stop_patience: Annotated[int, Field(ge=1)] = 25
    """A class stops after so many rounds without a smaller mask, once λ went up and down."""
    stop_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """By what share a mask has to be smaller to count there; a benchmark has .01."""
    give_up: Annotated[int, Field(ge=1)] = 100
    """A class without any success by this round is given up (ours)."""
    threshold: Annotated[float, Field(gt=0)] = 2.0
    """A class is flagged above this anomaly index, in MAD below the median."""
    chunk: Annotated[int, Field(ge=1)] = 1024
    """Stamped images of 32 × 32 pixels in memory at once, as many pixels of larger ones
    (ours); changes nothing but rounding."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {},
        # One step a round, of few images, and larger; λ moves from the start, and sooner.
        "fast": {
            "rounds": 80, "round_images": 12, "batch_size": 12, "start_free": False,
            "penalty": 0.01, "patience": 3, "stop_patience": 15, "success_rate": 0.9,
            "give_up": 40, "learning_rate": 0.3,
        },
    }  # fmt: skip

    def search(
        self, model: nn.Module, data: LabelledImages, rng: Rng, *, on_round: OnRound
    ) -> Found:
        """Return for each class its smallest mask with its pattern, and the norm where it works.

        Args:
            model: comes back as it was given.
            data: the images to stamp; their labels play no part.
            rng: draws the first masks and patterns, and the images of each round.
            on_round: called after every round.
        """
        net = working_copy(model).requires_grad_(False)
        images = data.floats().to(device_of(net), dtype_of(net))
        raw = self._start(images, data.num_classes, rng.torch("start"))
        optimizer = torch.optim.Adam(raw, self.learning_rate, betas=(0.5, 0.9))
        kept = [squash(t.detach()) for t in raw]
        penalties = [self._penalty() for _ in range(data.num_classes)]
        searching = list(range(data.num_classes))
        history: list[Row] = []
        while searching and len(history) < self.rounds:
            generator = rng.torch(f"round/{len(history) + 1}", images.device)
            order = torch.randperm(len(images), generator=generator, device=images.device)
            order = order[: self.round_images]
            weights = images.new_tensor([p.weight for p in penalties])
            hits = torch.zeros(len(penalties), dtype=torch.int64, device=images.device)
            for index in order.split(self.batch_size):
                optimizer.zero_grad(set_to_none=False)
                for some in _chunks(searching, at_once(self.chunk, images) // len(index)):
                    classes = torch.tensor(some, device=images.device)
                    hits[classes] += _add_gradient(net, images[index], raw, weights, classes)
                # Classes that have stopped drift on by their momentum; what was kept does not.
                optimizer.step()
            now = [squash(t.detach()) for t in raw]
            norms, least = now[0].flatten(1).sum(1).tolist(), self.success_rate * len(order) - 1e-9
            for t, hit in enumerate(hits.tolist()):
                if t in searching and penalties[t].update(hit >= least, norms[t]):
                    for best, new in zip(kept, now, strict=True):
                        best[t] = new[t]
            searching = [t for t in searching if not penalties[t].finished]
            found = [p.best for p in penalties if p.best is not None]
            history.append({
                "stage": "search", "round": len(history) + 1, "rounds": self.rounds,
                "searching": len(searching), "found": len(found),
                **({"smallest": min(found)} if found else {}),
            })  # fmt: skip
            on_round(history[-1])
        triggers = tuple(MaskedTrigger(*pair) for pair in zip(*kept, strict=True))
        return Found(triggers, tuple(p.best for p in penalties), tuple(history))

    def _start(self, images: Images, classes: int, generator: torch.Generator) -> list[Tensor]:
        """Return what the tanh is taken of: masks ``(k, 1, h, w)``, patterns ``(k, c, h, w)``."""
        shapes = [(classes, channels, *images.shape[2:]) for channels in (1, images.shape[1])]
        # Drawn in double precision: a single-precision 0 would have no finite inverse of tanh.
        uniform = [torch.rand(s, generator=generator, dtype=torch.float64) for s in shapes]
        return [((u - 0.5) * (2 - 1e-7)).atanh().to(images).requires_grad_() for u in uniform]

    def _penalty(self) -> Penalty:
        return Penalty(
            self.penalty, start_free=self.start_free, factor=self.factor, patience=self.patience,
            stop_patience=self.stop_patience, stop_gain=self.stop_gain, give_up=self.give_up,
        )  # fmt: skip


def _chunks(classes: Sequence[int], size: int) -> list[Sequence[int]]:
    size = max(1, size)
    return [classes[i : i + size] for i in range(0, len(classes), size)]


def _add_gradient(
    net: nn.Module, images: Images, raw: Sequence[Tensor], weights: Tensor, classes: Tensor
) -> Tensor:
    """Add the loss's gradient of some classes to ``raw``; return how many images reached each."""
    a, b = len(classes), len(images)
    with torch.enable_grad():
        masks, patterns = (squash(t[classes]) for t in raw)  # (a, 1, h, w), (a, c, h, w)
        x = stamped(images, masks[:, None], patterns[:, None]).flatten(0, 1)  # (a · b, c, h, w)
        logits = net(x.contiguous(memory_format=torch.channels_last))
        targets = classes.repeat_interleave(b)
        cross_entropy = F.cross_entropy(logits, targets, reduction="sum") / b
        (cross_entropy + weights[classes] @ masks.flatten(1).sum(1)).backward()
    hits: Tensor = (logits.detach().argmax(1) == targets).view(a, b).sum(1)
    return hits
