"""What every trigger that holds a picture has to check once, when it is made."""

from __future__ import annotations

import torch
from torch import Tensor

from excise.errors import TriggerError

__all__ = ["check_picture"]


def check_picture(name: str, picture: Tensor) -> None:
    """Refuse a picture that would take images out of their range, or is none.

    Args:
        name: what the caller calls it.
        picture: ``(c, h, w)`` floats in [0, 1].

    Raises:
        TriggerError: another shape or type, or values outside [0, 1].
    """
    fits = picture.ndim == 3 and picture.numel() > 0 and picture.is_floating_point()
    got = f"{picture.dtype} of shape {tuple(picture.shape)}"
    if fits:
        low, high = (float(value) for value in torch.aminmax(picture))
        # Written so that NaN, which compares false with everything, is refused as well.
        fits = low >= 0 and high <= 1
        got = f"values in [{low:.4g}, {high:.4g}]"
    if not fits:
        raise TriggerError(
            f"a {name} of shape (c, h, w) with float values in [0, 1]",
            got=got,
            remedy="Divide 8-bit pictures by 255; channels come first.",
        )
