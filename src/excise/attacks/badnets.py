"""BadNets: a small patch replaces pixels.

Paper: Gu, Dolan-Gavitt, Garg: BadNets: Evaluating Backdooring Attacks on Deep Neural Networks,
IEEE Access 2019 (arXiv 1708.06733).

Departures from the field's default (a white 3 × 3 square in the lower right corner, target 0): a
victim's seed draws the target class and where the patch sits, so that nothing can be tuned to one
corner. ``PRESETS["field"]`` is the fixed choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from excise.attacks.poisoning import DirtyLabel, Drawn
from excise.data import read_picture
from excise.errors import TriggerError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.triggers import Patch

__all__ = ["BadNets"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BadNets(Drawn, DirtyLabel):
    """A white square, a checkerboard, or a picture of the user's, pasted on the image."""

    size: Annotated[int, Field(ge=1)] = 3
    """Side of the square in pixels; a picture is scaled to it."""
    row: int | None = None
    """Top row of the patch, negative from the bottom; None: drawn from the victim's seed."""
    column: int | None = None
    """Left column of the patch, negative from the right; None: drawn from the victim's seed."""
    value: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Gray value of the square in [0, 1]; black (0) is a patch like any other."""
    pattern: Literal["solid", "checkerboard"] = "solid"
    """How the square is filled: all of one gray value, or every other pixel, black between."""
    picture: Path | None = None
    """A picture file to paste instead of the square."""

    DRAWN: ClassVar[tuple[str, ...]] = ("row", "column", "target")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "seeded": {},
        "field": {"target": 0, "row": -3, "column": -3},
    }

    def trigger(self, shape: tuple[int, int, int], rng: Rng) -> Patch:
        """Return the patch for images of ``shape``; an open place is drawn uniformly.

        Raises:
            TriggerError: the patch is larger than the image.
        """
        c, h, w = shape
        if self.size > min(h, w):
            raise TriggerError(
                f"a patch that fits into {h} × {w} pixels",
                got=f"{self.size} × {self.size}",
                remedy=f"Choose a size of at most {min(h, w)}.",
            )
        if self.picture is not None:
            pattern = read_picture(
                self.picture, size=(self.size, self.size), channels=1 if c == 1 else 3
            )
        else:
            pattern = torch.full((c, self.size, self.size), self.value)
            if self.pattern == "checkerboard":
                steps = torch.arange(self.size)
                pattern[:, (steps[:, None] + steps) % 2 == 1] = 0
        row = rng.integer("row", 0, h - self.size + 1) if self.row is None else self.row
        column = rng.integer("column", 0, w - self.size + 1) if self.column is None else self.column
        return Patch(pattern, torch.ones(self.size, self.size, dtype=torch.bool), row, column)
