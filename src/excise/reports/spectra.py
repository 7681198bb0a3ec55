"""Spectra as small colored pictures, all of a page on one scale."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

__all__ = ["color_bar", "spectrum_png"]

#: Dark to bright, even to the eye, and told apart by every kind of color blindness.
_COLORS = "viridis"

Matrix = Sequence[Sequence[float]]


def spectrum_png(matrix: Matrix, high: float) -> bytes:
    """Return a matrix as a PNG file of one pixel a value; ``high`` and above is the brightest.

    Args:
        matrix: values from 0, first row on top.
        high: end of the scale; a scale that ends at 0 is all dark.
    """
    # Imported here: they take a second, and most of the command line never draws.
    import matplotlib as mpl
    from PIL import Image

    values = np.asarray(matrix, dtype=np.float64)
    shares = np.clip(values / high, 0, 1) if high > 0 else np.zeros_like(values)
    pixels = mpl.colormaps[_COLORS](shares, bytes=True)[..., :3]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return file.getvalue()


def color_bar() -> bytes:
    """Return the whole scale, dark to bright, as a PNG file one pixel high."""
    return spectrum_png([[i / 127 for i in range(128)]], 1.0)
