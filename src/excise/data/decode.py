"""Decoding many pictures into one tensor.

Only the formats in :data:`FORMATS` are opened. Pillow also reads formats that start other programs
(EPS runs Ghostscript), and a stranger's data set must not choose the reader.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from excise.errors import DataError
from excise.machine import physical_memory, usable_cores

__all__ = [
    "MAX_PIXELS",
    "Channels",
    "Encoded",
    "Size",
    "SkippedPicturesWarning",
    "as_size",
    "decode",
]

Channels = Literal[1, 3]
#: Height and width in pixels; one number stands for both.
Size = int | tuple[int, int]
#: A picture before decoding: a file's bytes (None where a table lacks them), its path, or an open
#: picture.
Encoded = bytes | Path | Image.Image | None
T = TypeVar("T")
Array = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
#: A picture with more pixels is refused as a decompression bomb; Pillow's own warning level.
MAX_PIXELS = 1024**3 // 4 // 3
_SHOWN = 5
_BATCH = 512
_CHUNK = 64


class SkippedPicturesWarning(UserWarning):
    """Some pictures could not be read and were left out.

    Args:
        message: how many of how many, and the first few.
        skipped: the name of every picture left out.
    """

    def __init__(self, message: str, skipped: tuple[str, ...] = ()) -> None:
        """Keep the message, as every warning does, and the names beside it."""
        super().__init__(message)
        self.skipped = skipped


@dataclass(frozen=True)
class _Damaged:
    """Why one picture could not be read."""

    reason: str


def as_size(size: Size | None) -> tuple[int, int] | None:
    """Return ``size`` as (height, width), or None where the pictures keep their own.

    Raises:
        DataError: a height or width below 1, or more than two numbers.
    """
    if size is None:
        return None
    pair: tuple[int, ...] = (size, size) if isinstance(size, int) else ()
    if isinstance(size, Sequence):
        pair = tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise DataError(
            "size as one number of pixels or (height, width)",
            got=repr(size),
            remedy="Write for example size=32 or size=(32, 48).",
        )
    return pair[0], pair[1]


def decode(
    pictures: Iterable[tuple[str, Encoded]],
    count: int,
    *,
    size: Size | None = None,
    channels: Channels | None = None,
    skip_unreadable: bool = False,
) -> tuple[UInt8[Tensor, "n c h w"], list[int]]:
    """Decode pictures into one 8-bit tensor, in order, several at a time.

    Gray, palette, 16-bit and CMYK pictures are converted; an alpha channel is dropped, as
    torchvision's folder reader does; the first frame of a moving picture is taken; the
    orientation a camera noted in EXIF is applied.

    Args:
        pictures: a name for messages and the encoded picture.
        count: how many there are; memory for all is taken at once.
        size: height and width to resize to, by antialiased bilinear interpolation without
            keeping the aspect ratio. None: the pictures must all have one size already.
        channels: 1 for gray, 3 for color; None: 1 if every picture is gray, else 3.
        skip_unreadable: leave damaged pictures out with a :class:`SkippedPicturesWarning`.

    Returns:
        The images ``(n, c, h, w)`` and the positions, among ``pictures``, of those that were read.

    Raises:
        DataError: a picture cannot be read (and is not to be skipped), is larger than
            :data:`MAX_PIXELS`, or sizes differ and no ``size`` is given; or all of them are more
            than this machine's memory holds.
    """
    wanted = as_size(size)
    if channels not in (None, 1, 3):
        raise DataError("channels 1 (gray) or 3 (color)", got=repr(channels), remedy="Choose one.")
    if wanted is not None:
        _check_memory(count, (channels or 3, *wanted))
    out: Array | None = None
    first = ""
    kept: list[int] = []
    damaged: list[tuple[str, str]] = []
    all_gray = True

    def read(chunk: list[tuple[int, tuple[str, Encoded]]]) -> list[tuple[Array, bool] | _Damaged]:
        return [_decode_one(encoded, wanted, channels or 3) for _, (_, encoded) in chunk]

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        # Batches bound how many encoded pictures are held at a time.
        for batch in _batched(enumerate(pictures), _BATCH):
            chunks = list(_batched(batch, _CHUNK))
            for chunk, results in zip(chunks, pool.map(read, chunks), strict=True):
                for (position, (name, _)), result in zip(chunk, results, strict=True):
                    if isinstance(result, _Damaged):
                        damaged.append((name, result.reason))
                        continue
                    array, gray = result
                    if out is None:
                        _check_memory(count, array.shape)
                        out, first = np.empty((count, *array.shape), np.uint8), name
                    _check_same_size(out, first, array, name)
                    out[len(kept)] = array
                    kept.append(position)
                    all_gray = all_gray and gray
    _report(damaged, count, skip_unreadable and out is not None)
    if out is None:
        raise DataError("at least one picture", got="none", remedy="Give some pictures.")
    images = torch.from_numpy(out[: len(kept)])
    if channels is None and all_gray:
        images = images[:, :1].clone()
    return images, kept


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    """Refuse what cannot lie in memory: asked for, it would be given until the machine stops."""
    needed, there = count * math.prod(shape), physical_memory()
    if there is not None and needed > there:
        raise DataError(
            f"images that fit into this machine's memory of {there / 1e9:.0f} GB",
            got=f"{count:,} of {shape[2]}×{shape[1]} pixels, which take {needed / 1e9:,.0f} GB",
            remedy="Take smaller or fewer images.",
        )


def _decode_one(
    encoded: Encoded, size: tuple[int, int] | None, channels: Channels
) -> tuple[Array, bool] | _Damaged:
    """Return one picture as ``(c, h, w)`` and whether it is gray, or why it is damaged."""
    try:
        if encoded is None:
            return _Damaged("it holds no bytes")
        if isinstance(encoded, Image.Image):
            return _to_array(encoded, size, channels)
        file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return _Damaged(f"{picture.width}×{picture.height} pixels, a decompression bomb")
            ImageOps.exif_transpose(picture, in_place=True)
            return _to_array(picture, size, channels)
    except UnidentifiedImageError:
        return _Damaged(f"not one of {', '.join(FORMATS)}")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return _Damaged(f"more than {MAX_PIXELS} pixels, a decompression bomb")
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        return _Damaged(str(error) or type(error).__name__)


def _to_array(
    picture: Image.Image, size: tuple[int, int] | None, channels: Channels
) -> tuple[Array, bool]:
    """Return an open picture as 8-bit ``(c, h, w)``, and whether it is gray."""
    gray = picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I")
    if picture.mode.startswith("I"):
        picture = _from_16_bits(picture)
    elif picture.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    array: Array = np.asarray(picture)
    return (array.transpose(2, 0, 1) if channels == 3 else array[None]), gray


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """Return a 16-bit gray picture in 8 bits; Pillow itself would clip it at 255."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels, whose range is unknown")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _check_same_size(out: Array, first: str, array: Array, name: str) -> None:
    if out.shape[1:] != array.shape:
        (h0, w0), (h, w) = out.shape[2:], array.shape[1:]
        raise DataError(
            "pictures of one size",
            got=f"{h0}×{w0} ({first}) and {h}×{w} ({name})",
            remedy="Pass size=(height, width) to resize them all.",
        )


def _report(damaged: list[tuple[str, str]], count: int, skip: bool) -> None:
    """Raise or warn if pictures could not be read."""
    if not damaged:
        return
    listed = "; ".join(f"{name} ({reason})" for name, reason in damaged[:_SHOWN])
    if len(damaged) > _SHOWN:
        listed += f"; and {len(damaged) - _SHOWN} more"
    if skip:
        warnings.warn(
            SkippedPicturesWarning(
                f"left out {len(damaged)} of {count} pictures that cannot be read: {listed}",
                tuple(name for name, _ in damaged),
            ),
            stacklevel=5,
        )
        return
    raise DataError(
        f"{count} readable picture{'s' * (count != 1)}",
        got=f"{len(damaged)} that cannot be read: {listed}",
        remedy="Repair or remove them, or leave them out: skip_unreadable=True (--skip-unreadable)."
        if len(damaged) < count
        else "Check that these are pictures.",
    )


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
