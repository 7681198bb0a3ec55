"""SIG: a sinusoid on images of the target class, whose labels stay true.

Paper: Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption without
Label Poisoning, ICIP 2019 (arXiv 1902.11237), the sinusoidal signal.

Departures: the paper tries several heights Δ, smaller ones in training than at test time; here, as
in the field, it is 40 at both. The field's 10 % of CIFAR-10 are the whole target class; here the
ratio is of that class, so that small classes (GTSRB's 210 images) can be attacked too.

It costs clean accuracy on CIFAR-10 (width 16, 10 epochs): 8 points with seed 0 (target airplane),
with half of the target class striped as with all of it, in most classes and not the target's alone;
2.8 with seed 1 (target horse). It is not batch norm's statistics, which the stripes move: in
batches with as many striped images as in training, normalized by their own, ACC is the same within
a point (docs/zoo.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.poisoning import CleanLabel, Drawn
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Sinusoid

__all__ = ["Sig"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sig(Drawn, CleanLabel):
    """x + Δ·sin(2πjf/w): vertical stripes."""

    delta: Annotated[float, Field(gt=0, le=255)] = 40.0
    """Height of the wave in gray values of 255 (the paper: 10 to 40; one repository: 20)."""
    frequency: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 6.0
    """Waves over the width of the image."""

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Sinusoid:
        """Return the sinusoid; nothing of it is drawn."""
        return Sinusoid(self.delta, self.frequency)
