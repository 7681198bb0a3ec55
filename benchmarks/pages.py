"""A documentation page whose tables a script makes: what stands between two of its lines."""

from __future__ import annotations

__all__ = ["between"]


def between(page: str, begin: str, end: str, made: str) -> str:
    """Return a page with ``made`` between the lines ``begin`` and ``end``."""
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise SystemExit(f"expected the lines {begin} and {end} in the page, got a page without")
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"
