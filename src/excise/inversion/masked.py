"""A trigger of a mask and a pattern, and what a search for one in every class has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.inversion.anomaly import anomaly_indices
from excise.models import device_of, dtype_of, in_mode
from excise.types import Images, LabelledImages, Row, Trigger

__all__ = ["Found", "MaskedTrigger", "flip_rate", "squash", "stamped"]


@dataclass(frozen=True, eq=False)
class MaskedTrigger:
    """Mixes a pattern into images where its mask is: (1 − m) ⊙ x + m ⊙ p.

    Args:
        mask: m, ``(1, h, w)`` in [0, 1], one for all channels.
        pattern: p, ``(c, h, w)`` in [0, 1].
    """

    mask: Float[Tensor, "1 h w"]
    pattern: Float[Tensor, "c h w"]

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the trigger on them, in their type, where they lie."""
        with torch.no_grad():
            return stamped(images, self.mask.to(images), self.pattern.to(images)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search has found, class by class.

    Args:
        triggers: one for every class; without a norm, of no use.
        norms: ‖m‖₁ in pixels; None for a class for which no mask was found that works.
        history: one row a round.
    """

    triggers: tuple[MaskedTrigger, ...]
    norms: tuple[float | None, ...]
    history: tuple[Row, ...]

    def indices(self) -> list[float | None]:
        """Return how far each class stands out by a small norm, in MAD units."""
        return anomaly_indices(self.norms)

    def by_size(self) -> list[int]:
        """Return the classes that have a trigger, the smallest first."""
        return [t for _, t in sorted((n, t) for t, n in enumerate(self.norms) if n is not None)]

    def flagged(self, threshold: float) -> list[int]:
        """Return the classes whose anomaly index is above ``threshold``, the smallest first."""
        indices = self.indices()
        return [t for t in self.by_size() if (indices[t] or 0) > threshold]

    def notes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return what a reader should know of it, given the classes' names."""
        without = [name for name, norm in zip(names, self.norms, strict=True) if norm is None]
        notes = []
        if without:
            more = f" and {len(without) - 5} more" if len(without) > 5 else ""
            shown = ", ".join(without[:5]) + more
            notes.append(f"No mask that works was found for {shown}.")
        if len(names) - len(without) < 3:
            notes.append("With fewer than three classes to compare, none can stand out.")
        return tuple(notes)


def squash(raw: Tensor) -> Tensor:
    """Return tanh(v) / (2 + 1e-7) + ½, which lies in [0, 1]."""
    return raw.tanh() / (2 + 1e-7) + 0.5


def stamped(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """Return (1 − m) ⊙ x + m ⊙ p; the three are broadcast to one shape ``(…, c, h, w)``."""
    return (1 - mask) * images + mask * pattern


def flip_rate(
    model: nn.Module, trigger: Trigger, target: int, data: LabelledImages | None
) -> float | None:
    """Return the share of images of other classes that the trigger sends to ``target``.

    Args:
        model: used in eval mode; comes back as it was.
        trigger: the class's.
        target: the class.
        data: images nobody searched with; without any of another class the answer is None.
    """
    others = torch.nonzero(data.labels != target).flatten() if data is not None else None
    if data is None or others is None or not len(others):
        return None
    hits = 0
    with in_mode(model), torch.inference_mode():
        for images, _ in data.subset(others).batches(256):
            logits = model(trigger(images.to(device_of(model), dtype_of(model))))
            hits += int((logits.argmax(1) == target).sum())
    return hits / len(others)
