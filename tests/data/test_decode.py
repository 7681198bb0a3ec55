"""Pictures of every kind become one 8-bit tensor; damaged ones are named."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from excise.data import SkippedPicturesWarning, read_picture, to_png
from excise.data.decode import MAX_PIXELS, decode
from excise.errors import DataError

pytestmark = pytest.mark.fast


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def one(content: bytes, **options: object) -> torch.Tensor:
    return decode([("it", content)], 1, **options)[0][0]  # type: ignore[arg-type]


def bomb() -> bytes:
    """A PNG of a few bytes that claims 20,000 × 20,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 999))
def test_a_png_brings_every_pixel_back(h: int, w: int, channels: int, seed: int) -> None:
    image = torch.randint(
        0, 256, (channels, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(one(to_png(image)), image)
    assert torch.equal(one(to_png(image.float() / 255)), image)


def test_many_pictures_keep_their_order(noise_png: Callable[[int], bytes]) -> None:
    contents = [noise_png(seed) for seed in range(1200)]  # more than two batches
    images, kept = decode(((str(k), c) for k, c in enumerate(contents)), 1200)
    assert images.shape == (1200, 3, 4, 4)
    assert images.dtype == torch.uint8
    assert kept == list(range(1200))
    for k in (0, 63, 64, 511, 512, 1199):
        want = np.asarray(Image.open(io.BytesIO(contents[k]))).transpose(2, 0, 1)
        assert np.array_equal(images[k].numpy(), want)


@pytest.mark.parametrize(
    ("picture", "gray", "color"),
    [
        (Image.new("L", (2, 2), 100), 100, (100, 100, 100)),
        (Image.new("1", (2, 2), 1), 255, (255, 255, 255)),
        (Image.new("LA", (2, 2), (100, 0)), 100, (100, 100, 100)),
        (Image.new("RGBA", (2, 2), (200, 10, 20, 0)), None, (200, 10, 20)),
        (Image.new("RGB", (2, 2), (200, 10, 20)), None, (200, 10, 20)),
        (Image.new("RGB", (2, 2), (200, 10, 20)).quantize(2), None, (200, 10, 20)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), 255, (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)), 100, (100, 100, 100)),
    ],
    ids=["L", "1", "LA", "RGBA", "RGB", "P", "16 bit white", "16 bit"],
)
def test_every_kind_of_picture_is_converted(
    picture: Image.Image, gray: int | None, color: tuple[int, int, int]
) -> None:
    content = saved(picture)
    assert one(content, channels=3)[:, 0, 0].tolist() == list(color)
    luma = round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])
    assert one(content, channels=1)[:, 0, 0].tolist() == [gray if gray is not None else luma]
    # Nobody said how many channels: gray only where the picture is.
    assert one(content).shape[0] == (1 if gray is not None else 3)


def test_a_transparent_palette_is_converted_without_a_warning() -> None:
    picture = Image.new("RGB", (2, 2), (200, 10, 20)).quantize(2)
    content = saved(picture, transparency=bytes([0, 255]))
    assert one(content, channels=3)[:, 0, 0].tolist() == [200, 10, 20]


def test_one_colored_picture_makes_all_of_them_color() -> None:
    gray, color = saved(Image.new("L", (2, 2), 7)), saved(Image.new("RGB", (2, 2), (1, 2, 3)))
    images, _ = decode([("a", gray), ("b", color)], 2)
    assert images[:, :, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_every_format_named_is_read(kind: str) -> None:
    assert one(saved(Image.new("RGB", (3, 2), (9, 9, 9)), kind)).shape == (3, 2, 3)


def test_the_orientation_a_camera_noted_is_applied() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to view
    image = one(saved(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert image.shape == (3, 16, 8)
    assert image[:, :6].float().mean() > 250  # white on top
    assert image[:, 10:].float().mean() < 5


def test_a_resized_picture_is_antialiased() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    image = one(saved(Image.fromarray(checkers.astype(np.uint8))), size=8)
    assert image.shape == (1, 8, 8)
    assert (image.float() - 127.5).abs().max() < 8  # without antialiasing: 0 or 255
    assert one(saved(Image.new("RGB", (5, 9))), size=(6, 3)).shape == (3, 6, 3)


def test_sizes_that_differ_need_a_size(png: Callable[..., bytes]) -> None:
    pictures = [("a.png", png(size=(4, 4))), ("b.png", png(size=(4, 5)))]
    with pytest.raises(DataError, match=r"one size, got 4×4 \(a.png\) and 4×5 \(b.png\).*size="):
        decode(pictures, 2)
    assert decode(pictures, 2, size=4)[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not one of PNG"),
        (b"no picture at all", "not one of PNG"),
        (None, "it holds no bytes"),
        (bomb(), "a decompression bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of PNG"),
        (saved(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point pixels"),
        (saved(Image.new("I", (2, 2), 70000), "TIFF"), "32-bit pixels"),
    ],
    ids=["empty", "text", "null", "bomb", "EPS", "float", "32 bit"],
)
def test_a_damaged_picture_is_named(content: bytes | None, reason: str) -> None:
    good = saved(Image.new("RGB", (2, 2)))
    pictures = [("cat/1.png", good), ("cat/2.png", content), ("cat/3.png", good)]
    match = rf"3 readable pictures, got 1 that cannot .*cat/2.png \(.*{reason}.*skip_unreadable"
    with pytest.raises(DataError, match=match):
        decode(pictures, 3)
    with pytest.warns(SkippedPicturesWarning, match=r"left out 1 of 3.*cat/2.png") as caught:
        images, kept = decode(pictures, 3, skip_unreadable=True)
    assert images.shape == (2, 3, 2, 2)
    assert kept == [0, 2]
    assert caught[0].message.skipped == ("cat/2.png",)  # type: ignore[union-attr]


def test_a_bomb_just_above_the_limit_is_refused_too() -> None:
    # Pillow only warns of this one, and the warning may be switched off.
    side = int(MAX_PIXELS**0.5) + 1
    content = saved(Image.new("1", (side, side)))
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)  # type: ignore[arg-type]
            with pytest.raises(DataError, match=r"a decompression bomb"):
                decode([("it", content)], 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_file_raises_our_error_or_none(position: int, value: int) -> None:
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    content = bytearray(saved(Image.fromarray(pixels)))
    content[position % len(content)] = value
    try:
        decode([("it", bytes(content))], 1)
    except DataError as error:
        assert "it (" in str(error)  # noqa: PT017


def test_a_truncated_file_is_damaged(noise_png: Callable[[int], bytes]) -> None:
    with pytest.raises(DataError, match=r"1 readable picture, got 1 .*Check that these are pict"):
        decode([("it", noise_png(0)[:60])], 1, skip_unreadable=True)


def test_only_the_first_of_many_damaged_pictures_are_listed() -> None:
    with pytest.raises(DataError, match=r"got 9 that .*; 4 \(.*; and 4 more\. Check"):
        decode([(str(k), b"") for k in range(9)], 9)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least one picture, got none"):
        decode([], 0)


@pytest.mark.parametrize("size", [0, -1, (3,), (3, 0), (1, 2, 3), (2.5, 2)])
def test_a_size_must_be_a_size(size: object, png: Callable[..., bytes]) -> None:
    with pytest.raises(DataError, match=r"one number of pixels or \(height, width\), got"):
        one(png(), size=size)


def test_channels_are_one_or_three(png: Callable[..., bytes]) -> None:
    with pytest.raises(DataError, match=r"channels 1 \(gray\) or 3 \(color\), got 4"):
        one(png(), channels=4)


def test_a_picture_is_read_as_floats(tmp_path: Path, png: Callable[..., bytes]) -> None:
    path = tmp_path / "trigger.png"
    path.write_bytes(png((255, 51, 0), size=(4, 6)))
    image = read_picture(path)
    assert image.dtype == torch.float32
    assert image.shape == (3, 4, 6)
    assert image[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert read_picture(str(path), size=2, channels=1).shape == (1, 2, 2)


def test_a_picture_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a picture file, got '.*nothing.png'. Check the path"):
        read_picture(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"1 readable picture, got 1 .*text.png \(not one of PNG"):
        read_picture(tmp_path / "text.png")


def test_what_is_no_image_is_not_written() -> None:
    with pytest.raises(DataError, match=r"shape \(c, h, w\) with 1 or 3 channels, got shape \(2,"):
        to_png(torch.zeros(2, 4, 4))
    with pytest.raises(DataError, match=r"got shape \(1, 3, 4, 4\)"):
        to_png(torch.zeros(1, 3, 4, 4))
    with pytest.raises(DataError, match=r"or uint8, got torch.int64"):
        to_png(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"or uint8, got NaN values"):
        to_png(torch.full((1, 4, 4), float("nan")))


def test_values_outside_the_range_are_clipped() -> None:
    assert one(to_png(torch.tensor([[[-1.0, 2.0, 0.5]]]))).tolist() == [[[0, 255, 128]]]


def test_pictures_larger_than_the_memory_are_refused_before_any_is_decoded() -> None:
    def pictures() -> Iterator[tuple[str, bytes]]:
        raise AssertionError("one was asked for")
        yield "none", b""

    with pytest.raises(DataError, match=r"fit into this machine's memory.* of 100000×100000 pixel"):
        decode(pictures(), 1000, size=100_000)


def test_many_pictures_of_a_size_of_their_own_are_refused_at_the_first() -> None:
    with pytest.raises(DataError, match=r"which take .* GB. Take smaller or fewer images"):
        decode([("one", saved(Image.new("RGB", (4, 4))))], 10**14)
