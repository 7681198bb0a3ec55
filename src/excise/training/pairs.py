"""Clean images, the same images triggered, and their true labels: what unlearning works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from excise.models import dtype_of
from excise.seeding import Rng
from excise.training.tune import Tuned, tune
from excise.types import (
    Images,
    Inversion,
    LabelledImages,
    Labels,
    OnRound,
    RecoveredTrigger,
    Trigger,
    round_to_8_bits,
)

__all__ = [
    "Paired",
    "count_correct",
    "led_astray",
    "logits_of",
    "notes_of",
    "told",
    "tune_on_pairs",
    "under_one_of",
]


def logits_of(model: nn.Module, images: Images, batch_size: int) -> Float[Tensor, "n k"]:
    """Return the logits of all images, computed ``batch_size`` at a time without gradients."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(batch_size)]).float()


def count_correct(model: nn.Module, data: LabelledImages, batch_size: int) -> int:
    """Return how many images the network, in the mode it is in, calls by their label."""
    logits = logits_of(model, data.floats().to(dtype_of(model)), batch_size)
    return int((logits.argmax(1) == data.labels).sum())


def notes_of(found: Sequence[RecoveredTrigger]) -> tuple[str, ...]:
    """Return what an inverter has to say beside its triggers."""
    return found.notes if isinstance(found, Inversion) else ()


def told(triggers: Sequence[RecoveredTrigger]) -> tuple[str, ...]:
    """Return what a defense that works against these assumes: the true trigger, or nothing."""
    return ("the true trigger",) if any(t.evidence.told for t in triggers) else ()


def under_one_of(
    triggers: Sequence[RecoveredTrigger],
    images: Images,
    generator: torch.Generator,
    *,
    boost: float = 1.0,
) -> tuple[Images, Labels]:
    """Return every image under one of the triggers, drawn for it; not rounded to 8 bits.

    Args:
        triggers: at least one.
        images: ``(n, c, h, w)``.
        generator: draws which trigger, and how strong it is.
        boost: the change of a trigger that was found, not told, is multiplied by up to as much: an
            inverted trigger is the weakest that works.

    Returns:
        The images, and of each the class its trigger leads to; -1 where the trigger names none.
    """
    draw = torch.rand(2, len(images), generator=generator, device=images.device, dtype=images.dtype)
    which, strength = (draw[0] * len(triggers)).long(), 1 + (boost - 1) * draw[1]
    changed = images.clone()
    for number, trigger in enumerate(triggers):
        index = torch.nonzero(which == number).flatten()
        if not len(index):
            continue
        some, by = images[index], strength[index, None, None, None]
        under = trigger(some)
        changed[index] = (
            under if trigger.evidence.told else (some + by * (under - some)).clamp(0, 1)
        )
    leads = torch.tensor([-1 if t.target is None else t.target for t in triggers])
    return changed.contiguous(memory_format=torch.channels_last), leads.to(images.device)[which]


def led_astray(logits: Tensor, wanted: Tensor, leads: Labels) -> Tensor:
    """Return mean −(1 − q_t) log(1 − p_t): how much a trigger still leads to its class t.

    Args:
        logits: ``(n, k)`` of images under a trigger; p is their softmax.
        wanted: q, ``(n, k)``, what the images show without it.
        leads: t of each image; -1: it does not count, but in n.
    """
    known = leads >= 0
    if not known.any():
        return logits.new_zeros(())
    classes = leads[known, None]
    # log(1 − p_t) as the other classes' log-sum: near p_t = 1 nothing is lost to rounding.
    others = logits[known].log_softmax(1).scatter(1, classes, -torch.inf).logsumexp(1)
    return -((1 - wanted[known].gather(1, classes).squeeze(1)) * others).sum() / len(logits)


@dataclass(frozen=True, eq=False)
class Paired:
    """Images and their triggered versions, computed once: a trigger is a pure function.

    Args:
        clean: ``(n, c, h, w)``.
        labels: the true labels of both versions.
        triggered: for each trigger all n images with it on.
    """

    clean: Images
    labels: Labels
    triggered: tuple[Images, ...]

    @classmethod
    def of(
        cls, data: LabelledImages, triggers: Sequence[Trigger], model: nn.Module | None = None
    ) -> Paired:
        """Pair ``data`` with the 8-bit pictures each trigger makes of it, in the model's type."""
        clean = data.floats()
        clean = clean if model is None else clean.to(dtype_of(model))
        with torch.no_grad():
            triggered = [round_to_8_bits(trigger(clean)) for trigger in triggers]
        # Channels last, as the networks that work on them: convolutions run faster so.
        first, *others = (
            images.contiguous(memory_format=torch.channels_last) for images in (clean, *triggered)
        )
        return cls(first, data.labels, tuple(others))

    def __len__(self) -> int:
        return len(self.labels)

    def triggered_batches(self, size: int) -> Iterator[tuple[Images, Labels, float]]:
        """Yield images under one trigger, true labels, and the batch's share of all pairs."""
        pairs = len(self.triggered) * len(self)
        for version in self.triggered:
            for images, labels in zip(version.split(size), self.labels.split(size), strict=True):
                yield images, labels, len(labels) / pairs

    def unlearning_gradient(
        self, model: nn.Module, weights: Sequence[Tensor], batch_size: int
    ) -> list[Tensor]:
        """Return ∂L_u/∂W of each weight, L_u = mean CE(f(T(x)), y) over every pair.

        The model is used in the mode it is in; a weight that L_u does not depend on gets zeros.
        """
        total = [torch.zeros_like(weight) for weight in weights]
        with torch.enable_grad():
            for images, labels, share in self.triggered_batches(batch_size):
                loss = F.cross_entropy(model(images), labels) * share
                gradients = torch.autograd.grad(
                    loss, weights, allow_unused=True, materialize_grads=True
                )
                torch._foreach_add_(total, gradients)
        return total

    def losses(self, index: Tensor) -> Iterator[tuple[Images, Labels, float]]:
        """Yield the clean and each triggered version at ``index``, with the weight of its loss.

        Clean images weigh 1, the triggered versions 1 together.
        """
        labels = self.labels[index]
        yield self.clean[index], labels, 1.0
        for version in self.triggered:
            yield version[index], labels, 1.0 / len(self.triggered)

    def clean_loss(self, model: nn.Module, batch_size: int) -> float:
        """Return the mean cross-entropy of the clean images."""
        return float(F.cross_entropy(logits_of(model, self.clean, batch_size), self.labels))

    def correct_and_unlearning_loss(self, model: nn.Module, batch_size: int) -> tuple[int, float]:
        """Return how many clean images are right, and L_u = mean CE(f(T(x)), y), in one pass."""
        images = torch.cat([self.clean, *self.triggered])
        logits = logits_of(model, images, batch_size)
        correct = (logits[: len(self)].argmax(1) == self.labels).sum()
        loss = F.cross_entropy(logits[len(self) :], self.labels.repeat(len(self.triggered)))
        return int(correct), float(loss)


def tune_on_pairs(
    model: nn.Module,
    train: Paired,
    validation: Paired,
    rng: Rng,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    patience: int,
    max_epochs: int,
    hold: Callable[[], None] | None,
    on_round: OnRound,
) -> Tuned:
    """Fine-tune every parameter in place with SGD on clean and triggered images, true labels.

    Stops by the cross-entropy of the clean validation images; see :func:`excise.training.tune`.
    Parameters that were frozen are frozen again afterwards.
    """
    frozen = [p for p in model.parameters() if not p.requires_grad]
    model.requires_grad_(True)
    tuned = tune(
        model,
        len(train),
        lambda index: (
            F.cross_entropy(model(images), labels) * weight
            for images, labels, weight in train.losses(index)
        ),
        lambda: validation.clean_loss(model, batch_size),
        torch.optim.SGD(
            model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        ),
        rng,
        batch_size=batch_size,
        patience=patience,
        max_epochs=max_epochs,
        hold=hold,
        on_round=on_round,
    )
    for parameter in frozen:
        parameter.requires_grad_(False)
    return tuned
