"""What a pruning round of Grad-Prune costs, beside the least it could cost.

Claim      a round takes at most 1.25 × the time of one forward and backward over the same images
           in plain PyTorch (docs/methods/grad-prune.md, "Cost")
Command    python benchmarks/pruning_round.py --threads 2
Hardware   2 cores, no GPU; figures in benchmarks/records/pruning-round.json
Runs       every round is paired with one floor measured right after it; the median of the ratios

The floor is what anybody would write: batches of 128, model(x), cross-entropy, backward() into
every parameter, in eval mode, channels-last, without validation and without choosing a filter.
Weights and images are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "records" / "pruning-round.json"
SPC, CLASSES = 100, 10


class EnoughError(Exception):
    """All rounds asked for are timed."""


def measure(width: int, rounds: int, threads: int, what: str) -> dict[str, Any]:
    """Time ``rounds`` rounds at one width (``what`` = "both"), or run one of the two for memory."""
    import torch
    import torch.nn.functional as F

    from excise.data import defender_data
    from excise.defenses import GradPrune
    from excise.inversion import Oracle
    from excise.models import build_model
    from excise.seeding import Rng
    from excise.types import LabelledImages

    torch.set_num_threads(threads)
    n = SPC * CLASSES
    pictures = torch.rand(n, 3, 32, 32, generator=Rng(0).torch("pictures"))
    images = LabelledImages(pictures, torch.arange(n) % CLASSES, tuple("0123456789"))
    data = defender_data(images, spc=SPC, rng=Rng(0))
    model = build_model(
        f"excise:preactresnet18,width={width}", classes=CLASSES, input_size=(32, 32), rng=Rng(0)
    ).eval()
    model.to(memory_format=torch.channels_last)
    train = data.train.floats().contiguous(memory_format=torch.channels_last)
    labels = data.train.labels

    def floor() -> float:
        start = time.perf_counter()
        model.zero_grad()
        for x, y in zip(train.split(128), labels.split(128), strict=True):
            F.cross_entropy(model(x), y).backward()
        return time.perf_counter() - start

    if what == "floor":
        floor()
        return {"peak_memory_mib": _peak()}
    took: list[float] = []
    floors: list[float] = []
    mark = 0.0

    def on_round(row: Any) -> None:
        nonlocal mark
        if mark:  # the first round also warms up
            took.append(time.perf_counter() - mark)
            if what == "both":
                floors.append(floor())
        elif what == "both":
            floor()
        if len(took) >= rounds:
            raise EnoughError
        mark = time.perf_counter()

    # A threshold and a patience that never stop it: the images are noise.
    method = GradPrune(
        inverter=Oracle(lambda x: x.flip(3)), max_accuracy_drop=1, patience=rounds + 2
    )
    with contextlib.suppress(EnoughError):
        method.repair(model, data, Rng(0), on_round=on_round)
    if what == "rounds":
        return {"peak_memory_mib": _peak()}
    ratios = [a / b for a, b in zip(took, floors, strict=True)]
    return {
        "width": width,
        "threads": threads,
        "rounds": len(took),
        "images": len(train),
        "seconds_a_round": statistics.median(took),
        "seconds_floor": statistics.median(floors),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def _peak() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    asked = parser.parse_args()
    import torch

    from excise.experiments.environment import environment
    from excise.files import write_json

    context = multiprocessing.get_context("spawn")
    known = json.loads(RECORD.read_text())["rows"] if RECORD.exists() else []
    rows = {row["width"]: row for row in known}
    for width in asked.widths:
        row: dict[str, Any] = {}
        # Each in a process of its own: peak memory never falls within one.
        for what in ("both", "rounds", "floor"):
            rounds = asked.rounds if what == "both" else 2
            with context.Pool(1) as pool:
                found = pool.apply(measure, (width, rounds, asked.threads, what))
            row |= found if what == "both" else {f"{what}_{key}": v for key, v in found.items()}
        print(json.dumps(row), flush=True)
        rows[width] = row
        kept = [rows[key] for key in sorted(rows)]
        write_json(RECORD, {"environment": environment(torch.device("cpu")), "rows": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main())
