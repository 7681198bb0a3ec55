"""One root seed, named generators; nothing else in Excise touches global randomness.

A name stands for a use ("sample", "augment/3"), so adding a use never shifts the numbers another
use sees, and a run that resumes at epoch 3 draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Rng:
    """A root seed from which every use derives its own generator by name.

    Args:
        seed: any integer; equal seeds give equal generators on every machine.
        path: the names already taken to get here; the caller leaves it empty.
    """

    seed: int
    path: str = ""

    def child(self, name: str) -> Rng:
        """Return the seed of a part of the work, independent of every other name."""
        return Rng(self.seed, f"{self.path}/{name}")

    def number(self, name: str) -> int:
        """Return a 63-bit seed for the use called ``name``."""
        digest = hashlib.sha256(f"{self.seed}:{self.path}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def torch(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh torch generator on ``device`` for the use called ``name``."""
        return torch.Generator(device).manual_seed(self.number(name))

    def numpy(self, name: str) -> np.random.Generator:
        """Return a fresh NumPy generator for the use called ``name``."""
        return np.random.default_rng(self.number(name))

    def integer(self, name: str, low: int, high: int) -> int:
        """Return an integer in [low, high) for the use called ``name``."""
        return int(self.numpy(name).integers(low, high))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Seed torch's global generators inside the block and restore them after it.

        For code that can draw from nowhere else: weight initialization and dropout.
        """
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.number(name))
            yield
