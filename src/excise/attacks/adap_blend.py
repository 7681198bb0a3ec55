"""Adap-Blend: half of a faint picture's pieces at training time, the whole picture at test time.

Paper: Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for
Backdoor Defenses, ICLR 2023. What was read where: docs/methods/adaptive-attacks.md.

Departures: the published picture is a copyrighted cartoon; ours is drawn from the victim's seed,
or one the user gives. Cover images of the target class, which the published code draws like any
other, are left out, as the paper describes them. Images whose sides 4 does not divide are cut
into pieces of nearly equal size; the published code refuses them.

It has not been seen to take on small victims yet; what was measured, and rates to try on 25,000
images, stand in docs/methods/adaptive-attacks.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.blended import seeded_picture
from excise.attacks.covered import Covered
from excise.data import read_picture
from excise.errors import TriggerError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Blend
from excise.types import Backdoor, Images

__all__ = ["AdapBlend"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdapBlend(Covered):
    """A blended picture of which every training image shows only some pieces."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the picture at test time."""
    train_alpha: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of the picture in the pieces that a training image shows."""
    grid: Annotated[int, Field(ge=1)] = 4
    """Pieces a side into which the picture is cut: 4 makes the published 16."""
    mask_rate: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Fraction of the pieces that a training image does not show; one is always shown."""
    picture: Path | None = None
    """A picture file; None: drawn from the victim's seed."""

    DRAWN: ClassVar[tuple[str, ...]] = ("picture", "target")

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Blend:
        """Return the whole picture's blend for images of ``shape``.

        Raises:
            TriggerError: an image with fewer pixels a side than there are pieces.
        """
        c, h, w = shape
        if min(h, w) < self.grid:
            raise TriggerError(
                f"images of at least {self.grid} × {self.grid} pixels, one for every piece",
                got=f"{h} × {w}",
                remedy=f"Choose a grid of at most {min(h, w)}.",
            )
        if self.picture is None:
            return Blend(seeded_picture(shape, rng), self.alpha)
        picture = read_picture(self.picture, size=(h, w), channels=1 if c == 1 else 3)
        return Blend(picture, self.alpha)

    def backdoor(self, shape: tuple[int, int, int], num_classes: int, rng: Rng) -> Backdoor:
        """Return the backdoor; its training trigger is the whole picture, not yet in pieces."""
        backdoor = super().backdoor(shape, num_classes, rng)
        assert isinstance(backdoor.trigger, Blend)
        return replace(backdoor, train_trigger=Blend(backdoor.trigger.picture, self.train_alpha))

    def stamp(self, images: Images, backdoor: Backdoor, rng: Rng) -> Images:
        """Return the images, each with pieces of the picture that it drew."""
        assert isinstance(backdoor.train_trigger, Blend)
        n, _, h, w = images.shape
        shown = self.pieces(n, h, w, rng).unsqueeze(1).to(images.device)
        return torch.where(shown, backdoor.train_trigger(images), images)

    def pieces(self, n: int, h: int, w: int, rng: Rng) -> Bool[Tensor, "n h w"]:
        """Return which pixels of each of ``n`` images show the picture.

        Every image shows the same number of pieces, all choices of them equally likely.
        """
        count = self.grid**2
        showing = max(1, count - round(self.mask_rate * count))
        # A random order of the pieces for each image: those below `showing` are shown.
        order = torch.rand(n, count, generator=rng.torch("pieces")).argsort(1)
        shown = (order < showing).view(n, self.grid, self.grid)
        rows, columns = torch.arange(h) * self.grid // h, torch.arange(w) * self.grid // w
        return shown[:, rows][:, :, columns]
