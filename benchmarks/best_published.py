"""The published defenses that did best on the core grid, on Soft-Prune's reported victims.

Claim      docs/defenses.md (its table is made from the records this script writes)
Command    EXCISE_DATA=… python benchmarks/best_published.py
           python benchmarks/best_published.py --write    (the table, into the page)
Hardware   one core
Runs       one a network and defense, seed 0; what exists is kept, unless it was made with other
           settings than today's or on another number of test images
Time       about a minute a network of 10 classes, three of 43

Which      those of the best DER at worst on the core grid at SPC 10 (benchmarks/defense_table.py)
Images     the same as Soft-Prune's in benchmarks/trigger_free.py, to defend with and to measure on
Records    benchmarks/records/best-published/DEFENSE/NETWORK.json
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
import trigger_free
from pages import between
from scan_networks import VICTIMS
from trigger_free import Record, three

if TYPE_CHECKING:
    from excise.types import Defense

RECORDS = Path(__file__).parent / "records" / "best-published"
PAGE = Path(__file__).parents[1] / "docs" / "defenses.md"
BEGIN = "<!-- made by benchmarks/best_published.py -->"
END = "<!-- end of the best published -->"
SPC = 10
#: Defense and preset, as on the core grid.
METHODS: Mapping[str, str] = {"ulrl": "fast", "d3": "fast", "mm-bm": "published", "awm": "fast"}
NETWORKS = (
    "cifar10-badnets-0", "cifar10-blended-0", "cifar10-lf-0", "cifar10-wanet-0", "cifar10-sig-0",
    "cifar10-ssba-0", "cifar10-bpp-0", "cifar10-input-aware-0",
    "gtsrb-badnets-0", "gtsrb-blended-0", "gtsrb-lf-0", "gtsrb-wanet-0",
)  # fmt: skip


def method(name: str) -> Defense:
    """Return a defense with the settings it has on the core grid."""
    from excise import registry

    preset = registry.find("defense", name).presets()[METHODS[name]]
    made: Defense = registry.build("defense", name, preset)
    return made


def records() -> dict[tuple[str, str], Record]:
    """Return the records made with today's settings, by defense and network."""
    found = [json.loads(path.read_text()) for path in sorted(RECORDS.rglob("*.json"))]
    today = {name: trigger_free.settings(method(name)) for name in METHODS}
    return {
        (name, record["network"]): record
        for record in found
        if record["defense"] == today.get(name := record["defense"]["name"])
    }


def table() -> str:
    """Return the table: a row a victim, a column a defense, and what is worst and usual of each."""
    ours = {r["network"]: r for r in trigger_free.records() if r["spc"] == SPC and not r["seed"]}
    every = {("soft-prune", name): record for name, record in ours.items()} | records()
    columns = ("soft-prune", *METHODS)
    lines = [
        "| victim | before | " + " | ".join(columns) + " |",
        "|" + "-|" * (len(columns) + 2),
    ]
    for network in NETWORKS:
        cells = [every.get((name, network)) for name in columns]
        known = next((cell for cell in cells if cell), None)
        before = three(known["before"]) if known else ""
        lines.append(f"| {network} | {before} | {' | '.join(map(cell_of, cells))} |")
    # Of different victims, a worst and a mean say nothing beside one another.
    whole = [n for n in NETWORKS if all((name, n) in every for name in columns)]
    for title, of in (("DER at worst", min), ("DER in the mean", mean)):
        if whole:
            figures = [of([der(every[name, n]) for n in whole]) for name in columns]
            shown = " | ".join(f"{figure:.3f}" for figure in figures)
            lines.append(f"| **{title}**, of {len(whole)} | | {shown} |")
    return "\n".join(lines)


def page_with(page: str) -> str:
    """Return the page with the table of the records that are there."""
    return between(page, BEGIN, END, table())


def der(record: Record) -> float:
    return float(record["comparison"]["der"]["value"])


def cell_of(record: Record | None) -> str:
    return f"{three(record['after'])}, {der(record):.3f}" if record else "not run"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="names of networks, with * and ?")
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table and stop")
    asked = parser.parse_args()
    from excise.files import write_json, write_text

    if asked.write:
        write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8")))
        return 0
    import torch

    torch.set_num_threads(asked.threads)
    data = dict[Any, Any]()
    for network in fnmatch.filter(NETWORKS, asked.only):
        for name in METHODS:
            path, by = RECORDS / name / f"{network}.json", method(name)
            there = json.loads(path.read_text()) if path.exists() else {}
            there = there if there.get("before", {}).get("n") == asked.test_images else {}
            if there.get("defense") == trigger_free.settings(by):
                continue
            start = time.perf_counter()
            record = trigger_free.repair(VICTIMS / network, SPC, 0, asked.test_images, data, by=by)
            write_json(path, record)
            took = f"{time.perf_counter() - start:.0f} s"
            print(f"{name} on {network}: {cell_of(record)}, {took}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
