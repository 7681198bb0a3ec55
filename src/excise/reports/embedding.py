"""Pictures inside a page: PNG files as addresses that hold them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

__all__ = ["Embedded", "data_uri", "embedded"]

_SMALL = 128  # pixels; smaller pictures are scaled up in squares, not blurred


@dataclass(frozen=True)
class Embedded:
    """A picture as a template shows it; without ``uri`` it shows a gap that says so."""

    caption: str
    alt: str
    uri: str | None
    width: int
    height: int
    small: bool


def embedded(caption: str, alt: str, content: bytes) -> Embedded:
    """Return a PNG file as a picture of a page; what is no PNG leaves a gap."""
    width, height = _png_size(content)
    uri = data_uri(content, "image/png") if width else None
    return Embedded(caption, alt, uri, width, height, max(width, height) < _SMALL)


def data_uri(content: bytes, kind: str) -> str:
    """Return ``content`` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png_size(content: bytes) -> tuple[int, int]:
    """Return width and height from a PNG's head, zeros if it is no PNG."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 24:
        return 0, 0
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
