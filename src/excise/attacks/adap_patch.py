"""Adap-Patch: one of four faint patches on each training image, strong patches at test time.

Paper: Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for
Backdoor Defenses, ICLR 2023. What was read where: docs/methods/adaptive-attacks.md.

Departures: the published patches are trademarks and an optimized square; ours have their sizes,
places and opacities, and are drawn from the seed or given by the user. The seed also mirrors their
arrangement, so that nothing can be tuned to one corner (``PRESETS["field"]`` does not). Patches are
shared out at random; the published code goes by the order of the data, which may be by class. Cover
images of the target class, which it draws like any other, are left out, as the paper has them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from excise.attacks.blended import seeded_picture
from excise.attacks.covered import Covered
from excise.data import read_picture
from excise.errors import TriggerError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Layers
from excise.types import Backdoor, Images

__all__ = ["AdapPatch"]

Shape = tuple[int, int, int]

#: In the order in which they are laid: side on a 32 × 32 image, distance from its bottom and right
#: edges, opacity at training time.
PATCHES = {"corner": (5, 0, 0, 0.5), "disc": (13, 18, 1, 0.2),
           "checks": (3, 0, 0, 0.5), "square": (8, 3, 3, 0.3)}  # fmt: skip
MIRRORS = ("none", "horizontal", "vertical", "both")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdapPatch(Covered):
    """Four patches: a corner, a disc, checks in every corner, a square."""

    cover_rate: Annotated[float, Field(ge=0, lt=1)] = 0.006
    """Cover images, triggered under their own label, as a fraction of all training images."""
    shown: Literal["corners", "disc-and-square"] = "corners"
    """What test images carry at full opacity: the corner patch, at both ends of its edge, and the
    checks (published for CIFAR-10), or disc and square (published for GTSRB)."""
    mirror: Literal["none", "horizontal", "vertical", "both"] | None = None
    """How patches are mirrored; ``none`` has the corner patch at the lower right; None: drawn."""
    corner_picture: Path | None = None
    """A picture file for the corner patch; None: drawn."""
    disc_picture: Path | None = None
    """A picture file for the disc; None: drawn."""
    square_picture: Path | None = None
    """A picture file for the square; None: drawn."""

    DRAWN: ClassVar = ("mirror", "corner_picture", "disc_picture", "square_picture", "target")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "seeded": {},
        "field": {"target": 0, "mirror": "none"},
        "field-gtsrb": {"target": 2, "mirror": "none", "shown": "disc-and-square",
                        "poison_ratio": 0.005, "cover_rate": 0.01},
    }  # fmt: skip

    def trigger(self, shape: Shape, rng: Rng) -> Layers:
        """Return what test images of ``shape`` carry: two layers of full opacity.

        Raises:
            TriggerError: images too small for four patches.
        """
        layers = {name: self._patch(name, shape, rng) for name in PATCHES}
        if self.shown == "disc-and-square":
            return self._arranged([layers["disc"], layers["square"]], rng)
        picture, mask = layers["corner"]
        # The same patch once more, not mirrored, at the other end of the edge.
        by = int(mask.any(0).sum())
        both = picture + picture.roll(by, 2), mask + mask.roll(by, 1)
        return self._arranged([both, layers["checks"]], rng)

    def backdoor(self, shape: Shape, num_classes: int, rng: Rng) -> Backdoor:
        """Return the backdoor; its training trigger holds all four patches, faint."""
        draws = rng.child("trigger")
        patches = [(self._patch(name, shape, draws), PATCHES[name][-1]) for name in PATCHES]
        faint = [(picture, opacity * mask) for (picture, mask), opacity in patches]
        backdoor = super().backdoor(shape, num_classes, rng)
        return replace(backdoor, train_trigger=self._arranged(faint, draws))

    def stamp(self, images: Images, backdoor: Backdoor, rng: Rng) -> Images:
        """Return the images, each with one of the four patches; every patch gets its share."""
        patches = backdoor.train_trigger
        assert isinstance(patches, Layers)
        order = torch.randperm(len(images), generator=rng.torch("share"))
        share = (order % len(patches.pictures)).to(images.device)
        stamped = images.clone()
        for k in range(len(patches.pictures)):
            stamped[share == k] = patches.single(k)(images[share == k])
        return stamped

    def _arranged(self, layers: list[tuple[Tensor, Tensor]], rng: Rng) -> Layers:
        """Return pictures and opacities as a trigger, mirrored as said or drawn."""
        mirror = self.mirror or MIRRORS[rng.integer("mirror", 0, len(MIRRORS))]
        axes = {"none": [], "horizontal": [-1], "vertical": [-2], "both": [-2, -1]}[mirror]
        pictures, masks = (torch.stack(part).flip(axes) for part in zip(*layers, strict=True))
        return Layers(pictures, masks)

    def _patch(self, name: str, shape: Shape, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return picture ``(c, h, w)`` and mask ``(h, w)`` of one patch, not mirrored."""
        c, h, w = shape
        if min(h, w) < 8:
            raise TriggerError(
                "images of at least 8 × 8 pixels, or four patches have no room",
                got=f"{h} × {w}",
                remedy="Use badnets on images this small.",
            )
        side, below, right = (round(n * min(h, w) / 32) for n in PATCHES[name][:3])
        side = max(side, 3 if name == "corner" else 2)  # The checks must not hide the corner.
        if name == "checks":
            return _checks(shape, side)
        given: Path | None = getattr(self, f"{name}_picture")
        if given is None:
            pixels = seeded_picture((c, side, side), rng.child(name))
        else:
            pixels = read_picture(given, size=(side, side), channels=1 if c == 1 else 3)
        rows, columns = slice(h - below - side, h - below), slice(w - right - side, w - right)
        picture, mask = torch.zeros(shape), torch.zeros(h, w)
        picture[:, rows, columns] = pixels
        mask[rows, columns] = _disc(side) if name == "disc" else 1
        return picture, mask


def _disc(side: int) -> Tensor:
    """Return the mask ``(side, side)`` of a circle."""
    away = torch.arange(side) - (side - 1) / 2
    return (away[:, None] ** 2 + away**2 <= (side / 2) ** 2).float()


def _checks(shape: Shape, side: int) -> tuple[Tensor, Tensor]:
    """Return picture and mask of a board in every corner, its cell toward the middle black."""
    cell = torch.arange(side) * 3 // side
    board = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])[cell][:, cell]
    corner = torch.zeros(2, *shape[1:])
    corner[0, :side, :side], corner[1, :side, :side] = board, 1
    white, mask = corner + corner.flip(1) + corner.flip(2) + corner.flip(1, 2)
    return white.expand(shape), mask
