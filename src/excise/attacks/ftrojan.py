"""FTrojan: two frequencies of the color channels are raised, which no eye sees.

Paper: Wang, Yao, Xu, An, Tong, Wang: An Invisible Black-Box Backdoor Attack Through Frequency
Domain, ECCV 2022 (arXiv 2111.10991).

Departures: poison is drawn from all classes, as in the field (the paper leaves the target out:
``exclude_target``), and is a tenth of all images (the authors' scripts: 5 % and 2 %). Those of the
trigger stand in :mod:`excise.triggers.ftrojan`.

A faint trigger is learned late: on CIFAR-10 (width 16, 25,000 images, recipe ``fast``) ASR is 4.8 %
after 10 epochs and 99.5 % after 40 (docs/zoo.md).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.poisoning import DirtyLabel, Drawn
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import FTrojan as Frequencies

__all__ = ["FTrojan"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FTrojan(Drawn, DirtyLabel):
    """A middle and the highest frequency of Cr and Cb, window by window."""

    magnitude: Annotated[float, Field(gt=0, le=8160)] = 30.0
    """Added to a coefficient of gray values of 255 (the authors' scripts: 30 and 20)."""
    window: Annotated[int, Field(ge=4)] = 32
    """Side of the DCT's windows in pixels; a smaller image is one window."""

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Frequencies:
        """Return the trigger; nothing of it is drawn."""
        return Frequencies(self.magnitude, self.window)
