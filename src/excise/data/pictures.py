"""One picture at a time: read from a file, written to one."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from excise.data.decode import Channels, Size, decode
from excise.errors import DataError

__all__ = ["read_picture", "to_png"]


def read_picture(
    path: str | Path, size: Size | None = None, channels: Channels = 3
) -> Float[Tensor, "c h w"]:
    """Read one picture, for example a trigger's, as floats in [0, 1].

    Args:
        path: a PNG, JPEG, BMP, GIF, TIFF, WebP or PPM file.
        size: height and width to resize to; None keeps the picture's own.
        channels: 1 for gray, 3 for color.

    Raises:
        DataError: no such file, or it cannot be read as a picture.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("a picture file", got=f"{str(path)!r}", remedy="Check the path.")
    images, _ = decode([(str(path), path)], 1, size=size, channels=channels)
    return images[0].float().div_(255)


def to_png(image: Tensor) -> bytes:
    """Return one image as the bytes of a PNG file.

    Args:
        image: ``(c, h, w)`` with 1 or 3 channels; uint8, or float in [0, 1] (clipped to it and
            rounded to 8 bits).

    Raises:
        DataError: another shape, another type, or values that are not numbers.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(
            "one image of shape (c, h, w) with 1 or 3 channels",
            got=f"shape {tuple(image.shape)}",
            remedy="Take one image of the batch, channels first.",
        )
    if image.dtype != torch.uint8:
        if not image.is_floating_point() or bool(image.isnan().any()):
            kind = "NaN values" if image.is_floating_point() else str(image.dtype)
            raise DataError(
                "float values in [0, 1] or uint8", got=kind, remedy="Convert the image first."
            )
        image = image.detach().clamp(0, 1).mul(255).round_().to(torch.uint8)
    array = image.permute(1, 2, 0).cpu().contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()
