"""The one limit that the networks of this package share."""

from __future__ import annotations

from excise.errors import ModelError

__all__ = ["check_width"]

_WIDEST = 1024


def check_width(width: int) -> None:
    """Refuse a width that is no whole number from 1 to 1024.

    Raises:
        ModelError: it is none. A card found on disk names the width, so it has to be bounded.
    """
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= _WIDEST:
        raise ModelError(
            f"a width from 1 to {_WIDEST}",
            got=f"width={width!r}",
            remedy="Write for example excise:preactresnet18,width=16; the papers use 64.",
        )
