"""How many images go through a network together: a matter of memory, and of nothing else."""

from __future__ import annotations

from excise.types import Images

__all__ = ["at_once"]

#: Pixels of the images that chunks are counted in, 32 × 32.
_AREA = 32 * 32


def at_once(chunk: int, images: Images) -> int:
    """Return how many of these images have as many pixels as ``chunk`` of 32 × 32.

    Args:
        chunk: images of 32 × 32; smaller ones are not more.
        images: ``(…, h, w)``, of the size in question.
    """
    area = images.shape[-2] * images.shape[-1]
    return max(1, chunk * _AREA // max(area, _AREA))
