"""What the machine has for this process: cores and physical memory.

Every system tells it otherwise; what one does not tell, is not guessed at elsewhere.
"""

from __future__ import annotations

import os

__all__ = ["physical_memory", "usable_cores"]


def usable_cores() -> int:
    """Return how many cores this process may use; where that is not told, how many there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no POSIX, or no such name
        return None
