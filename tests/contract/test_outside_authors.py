"""A suite works in an outside author's test file, which gives it one fixture and nothing else."""

import os
import subprocess
import sys

FILE = """
import pytest
import torch

from excise.testing import TriggerContract
from excise.triggers import Patch

def square(shape):
    size = 0 if {nothing} else 2
    return Patch(torch.ones(shape[0], 2, 2), torch.ones(2, 2).bool() & bool(size), -2, -2)

class TestMine(TriggerContract):
    @pytest.fixture
    def make(self):
        return square
"""


def run(tmp_path, nothing):
    (tmp_path / "test_mine.py").write_text(FILE.format(nothing=nothing))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_an_outside_author_gives_one_fixture(tmp_path):
    done = run(tmp_path, nothing=False)
    assert done.returncode == 0, done.stdout
    assert "49 passed" in done.stdout


def test_what_fails_shows_its_values(tmp_path):
    done = run(tmp_path, nothing=True)
    assert done.returncode == 1
    assert "7 failed, 42 passed" in done.stdout
    assert "test_a_picture_file_carries_it" in done.stdout
    # Assertions inside the suite are rewritten like those of the author's own file.
    assert "where" in done.stdout
