"""A sweep small enough to be run, killed and run again many times."""

import json
from pathlib import Path

import pytest

TINY = """
[base]
data = "digits"
limit = 100
model = "excise:preactresnet18,width=2"
recipe = { epochs = 2, learning_rate = 0.05, batch_size = 32 }
attack = { name = "badnets", size = 2 }
spc = 2

[axes]
defense = [
  "none",
  { name = "grad-prune", inverter = "oracle", max_tune_epochs = 1, patience = 1 },
]
seed = [0, 1]
"""

#: What differs between two runs of the same thing.
TIMINGS = {"seconds", "created", "peak_memory_mib", "command"}


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def timeless(value):
    """Return a record or card without its timings."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMINGS}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(store):
    """Return everything a store holds, file by file, without timings."""
    found = {}
    for path in sorted(Path(store).rglob("*")):
        name = str(path.relative_to(store))
        if path.is_file() and not name.startswith("leases"):
            raw = path.read_bytes()
            found[name] = timeless(json.loads(raw)) if path.suffix == ".json" else raw
    return found
