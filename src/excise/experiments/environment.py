"""What a record says about where it was made: versions, device, memory, source revision."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "peak_memory_mib"]


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device and source revision; no path and no name of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "excise": version("excise"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "revision": _revision(),
    }


def peak_memory_mib(device: torch.device) -> int:
    """Return the process's peak memory in MiB: the device's, or resident memory on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _revision() -> str | None:
    """Return the commit Excise runs from, with ``+`` if changed; None outside a checkout."""
    source = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        # An installed copy may lie inside somebody else's checkout, ignored by it.
        tracked = subprocess.run(
            ["git", "-C", str(source), "ls-files", "--error-unmatch", "environment.py"],
            capture_output=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if tracked.returncode == 0 else None
