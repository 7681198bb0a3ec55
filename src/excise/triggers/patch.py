"""The patch trigger: pixels replaced where a mask is set.

Gu, Dolan-Gavitt, Garg: BadNets (arXiv 1708.06733). The field's default is a white 3 × 3 square in
the lower right corner of a 32 × 32 image (rows and columns 29 to 31).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from excise.errors import TriggerError
from excise.triggers.checking import check_picture
from excise.types import Images


@dataclass(frozen=True, eq=False)
class Patch:
    """Replaces pixels by ``pattern`` where ``mask`` is set.

    Args:
        pattern: ``(c, k, l)`` in [0, 1].
        mask: ``(k, l)``; black is a color like any other, so that what is replaced is said here.
        row: top row of the patch; negative counts from the bottom edge, -k touching it.
        column: left column of the patch; negative counts from the right edge.

    Raises:
        TriggerError: a pattern, mask or place that is none.
    """

    pattern: Float[Tensor, "c k l"]
    mask: Bool[Tensor, "k l"]
    row: int
    column: int

    def __post_init__(self) -> None:
        check_picture("pattern", self.pattern)
        if self.mask.dtype != torch.bool or self.mask.shape != self.pattern.shape[1:]:
            raise TriggerError(
                f"a bool mask of shape {tuple(self.pattern.shape[1:])}, like the pattern",
                got=f"{self.mask.dtype} of shape {tuple(self.mask.shape)}",
                remedy="Set the mask where pixels are to be replaced.",
            )
        if not (isinstance(self.row, int) and isinstance(self.column, int)):
            raise TriggerError(
                "row and column as whole numbers",
                got=f"{self.row!r} and {self.column!r}",
                remedy="Count from 0, or from -1 at the far edge.",
            )

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the patch on them.

        Raises:
            TriggerError: the patch has other channels than the images or does not lie inside.
        """
        c, h, w = images.shape[1:]
        k, width = self.mask.shape
        if self.pattern.shape[0] != c:
            raise TriggerError(
                f"a patch of {c} channels, like the images",
                got=f"{self.pattern.shape[0]}",
                remedy="Convert the picture to gray or to color.",
            )
        top = self.row + h if self.row < 0 else self.row
        left = self.column + w if self.column < 0 else self.column
        if top < 0 or left < 0 or top + k > h or left + width > w:
            raise TriggerError(
                f"a patch inside the {h} × {w} image",
                got=f"{k} × {width} pixels at row {self.row}, column {self.column}",
                remedy="Choose a smaller patch or another place.",
            )
        triggered = images.clone()
        region = triggered[:, :, top : top + k, left : left + width]
        pattern = self.pattern.to(images)
        region.copy_(torch.where(self.mask.to(images.device), pattern, region))
        return triggered
