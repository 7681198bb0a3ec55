"""Triggers made from a trigger: a pattern on top, pixels in another order, only a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from excise.types import Images, Trigger

__all__ = ["Partly", "Perturbed", "Shuffled"]


@dataclass(frozen=True, eq=False)
class Perturbed:
    """Adds a pattern after a trigger, if there is one: clip(T(x) + δ, 0, 1)."""

    trigger: Trigger | None
    pattern: Tensor

    def __call__(self, images: Images, /) -> Images:
        """Return the images with both on them."""
        triggered = images if self.trigger is None else self.trigger(images)
        return (triggered + self.pattern.to(images)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """A trigger whose pixels are in another order: P T P⁻¹.

    Args:
        trigger: T.
        order: P: where each of the h · w pixels comes from.
    """

    trigger: Trigger
    order: Tensor

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the shuffled trigger on them."""
        order = self.order.to(images.device)
        back = images.flatten(2)[:, :, order.argsort()].view_as(images)
        return self.trigger(back).flatten(2)[:, :, order].view_as(images)


@dataclass(frozen=True, eq=False)
class Partly:
    """A share of what a trigger changes: x + s · (T(x) − x).

    Args:
        trigger: T.
        share: s, in [0, 1].
    """

    trigger: Trigger
    share: float

    def __call__(self, images: Images, /) -> Images:
        """Return the images with that share of the change."""
        return images.lerp(self.trigger(images), self.share)
