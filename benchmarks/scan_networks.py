"""The combined scanner on clean networks and on victims: false alarms, and how many it finds.

Claim      docs/scan.md (its tables are made from the records this script writes)
Command    EXCISE_DATA=… python benchmarks/scan_networks.py --only 'small/*' --calibrate
           EXCISE_DATA=… python benchmarks/scan_networks.py --only 'cifar10-*' --spc 10
           python benchmarks/scan_networks.py --write    (the tables, into the page)
Hardware   one core
Runs       one a network and budget, seed 0; what exists is kept
Time       half a minute to two minutes a network of 10 classes, up to five of 43

Small      the sixty small clean networks of benchmarks/zoo.py: even seeds calibrate, odd seeds
           count false alarms
Images     drawn from the training images the network never saw
Records    benchmarks/records/scan/spc-N/NETWORK.json
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# A script's own directory is first on the path, so its neighbor needs no package.
from pages import between

HERE = Path(__file__).parent
VICTIMS = HERE / "victims"
RECORDS = HERE / "records" / "scan"
CALIBRATION = HERE.parent / "src" / "excise" / "detection" / "calibration.json"
PAGE = HERE.parent / "docs" / "scan.md"
BEGIN, END = "<!-- made by benchmarks/scan_networks.py -->", "<!-- end of what it made -->"

Record = dict[str, Any]


def networks(pattern: str) -> list[Path]:
    """Return the bundles whose name fits, small ones first."""
    found = [*VICTIMS.glob("small/*/card.json"), *VICTIMS.glob("*/card.json")]
    return sorted(
        (card.parent for card in found if fnmatch.fnmatch(name_of(card.parent), pattern)),
        key=lambda path: ("small" not in path.parts, seed_of(path.name), path.name),
    )


def name_of(bundle: Path) -> str:
    return bundle.relative_to(VICTIMS).as_posix()


def seed_of(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


def images_of(card: Record, data: dict[Any, Any]) -> Any:
    """Return the images a network was made of, of its size, read once into ``data``."""
    from excise.data import load_data

    source, side = card["made"]["data"]["source"], card["input_size"][0]
    if (source, side) not in data:
        data[source, side] = load_data(source, size=side if source == "digits" else None)
    return data[source, side]


def scan(bundle: Path, spc: int, data: dict[Any, Any]) -> Record:
    """Scan one network with images it never saw."""
    from excise.attacks import load_backdoor
    from excise.data import defender_data
    from excise.detection.combined import family
    from excise.experiments.environment import environment
    from excise.experiments.plant import pool_of
    from excise.inversion.suspects import compare
    from excise.models import load_model, read_card
    from excise.seeding import Rng
    from excise.types import AllToOne, DefenderData

    card = read_card(bundle)
    made = card["made"]
    network = load_model(bundle)
    train = images_of(card, data).train
    pool = pool_of(train, made["seed"], made["data"]["victim_images"]).pool
    images = defender_data(pool, spc=spc, rng=Rng(0).child("sample"))
    everything = DefenderData(images.everything(), None, "the pool")
    # What CombinedScan does, without the threshold, which is what these records are to give.
    rng = Rng(0).child("method")
    suspects = compare(network, everything.train, rng)
    total = suspects.together()
    target = None
    if (bundle / "trigger.json").is_file():
        rule = load_backdoor(bundle, card).rule
        target = rule.target if isinstance(rule, AllToOne) else None
    return {
        "network": name_of(bundle),
        "spc": spc,
        "attack": made["attack"]["name"],
        "target": target,
        "family": family(network),
        "classes": len(network.classes),
        "acc": card["measured"]["acc"]["value"],
        "asr": (card["measured"].get("asr") or {}).get("value"),
        "suspect": suspects.ranked()[0],
        "statistic": max(total),
        "per_class": total,
        "tests": suspects.by_test(),
        "numbers": {test: list(each) for test, each in suspects.numbers.items()},
        "seconds": dict(suspects.seconds),
        "environment": environment(next(network.parameters()).device),
    }


def calibrates(record: Record) -> bool:
    return str(record["network"]).startswith("small/") and seed_of(record["network"]) % 2 == 0


def measures(record: Record) -> bool:
    return str(record["network"]).startswith("small/") and seed_of(record["network"]) % 2 == 1


def records(spc: int) -> list[Record]:
    paths = sorted((RECORDS / f"spc-{spc}").rglob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


def side(network: str) -> int:
    from excise.models import read_card

    return int(read_card(VICTIMS / network)["input_size"][-1])


def calibrated(found: Iterable[Record]) -> dict[str, Any]:
    """Return what ``calibration.json`` holds."""
    return {
        "scanner": "combined",
        "made_by": "benchmarks/scan_networks.py --only 'small/*' --calibrate",
        "spc": 10,
        "networks": [
            {
                "network": one["network"],
                "family": one["family"],
                "classes": one["classes"],
                "pixels_a_side": side(one["network"]),
                "images_a_class": one["spc"],
                "statistic": round(one["statistic"], 4),
            }
            for one in found
            if calibrates(one)
        ],
    }


def tables(spcs: Iterable[int] = (2, 10, 100)) -> str:
    """Return false alarms and detections at every budget, at today's calibration."""
    from excise.detection.combined import calibration, threshold
    from excise.rates import Rate

    limit = threshold([one["statistic"] for one in calibration()], 0.01)

    def share(hits: list[bool]) -> str:
        rate = Rate(sum(hits), len(hits))
        ends = f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"
        return f"{rate.count} of {rate.n} ({ends})" if hits else "not run"

    lines = [
        f"Alarm from S = {limit:.2f} on; the largest of {len(calibration())} calibrating networks "
        f"is {max(one['statistic'] for one in calibration()):.2f}. {looser()}",
        "",
        "| SPC | small clean networks | larger clean ones | victims found | right class first |",
        "|-|-|-|-|-|",
    ]
    for spc in spcs:
        found = records(spc)
        clean = [one["statistic"] >= limit for one in found if measures(one)]
        large = [one for one in found if not one["network"].startswith("small/")]
        fine = [one["statistic"] >= limit for one in large if one["attack"] == "none"]
        bad = [one for one in large if one["attack"] != "none" and (one["asr"] or 0) >= 0.5]
        lines.append(
            f"| {spc} | {share(clean)} | {share(fine)} | "
            f"{share([one['statistic'] >= limit for one in bad])} | "
            f"{share([one['suspect'] == one['target'] for one in bad])} |"
        )
    lines += [
        "",
        "S of every larger network, and in brackets margin + patch + pattern + smooth + memory of "
        "the suspected class, of each of which 2 count at most; **bold**: an alarm; *wrong*: "
        "another class than the target. Victims with an ASR below 50 % are listed, but not counted "
        "above.",
        "",
        "| network | ASR | " + " | ".join(f"SPC {spc}" for spc in spcs) + " |",
        "|-|-|" + "-|" * len(list(spcs)),
    ]
    by = {(one["network"], spc): one for spc in spcs for one in records(spc)}
    names = sorted({name for name, _ in by if not name.startswith("small/")})
    for name in names:
        some = next(by[name, spc] for spc in spcs if (name, spc) in by)
        asr = "–" if some["asr"] is None else f"{100 * some['asr']:.0f}"
        cells = [cell(by.get((name, spc)), limit) for spc in spcs]
        lines.append(f"| {name} | {asr} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def looser() -> str:
    """Return what looser alarms than the default cost, and how well the default is known."""
    import numpy as np

    from excise.detection.combined import calibration, threshold

    clean = [one["statistic"] for one in calibration()]
    measured = [one["statistic"] for one in records(10) if measures(one)]
    said = [
        f"{sum(s >= threshold(clean, rate) for s in measured)} of {len(measured)} at {rate:g}"
        for rate in (0.05, 0.1)
    ]
    rng = np.random.default_rng(0)
    drawn = [threshold(list(rng.choice(clean, len(clean))), 0.01) for _ in range(200)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    both = threshold([*clean, *measured], 0.01)
    return (
        f"Thirty networks say it roughly: resampled, they give {low:.1f} to {high:.1f}; with the "
        f"thirty it is measured on as well it would be {both:.2f}. False alarms among those at "
        f"looser alarm rates: {' and '.join(said)}, more than asked for."
    )


def cell(record: Record | None, limit: float) -> str:
    if record is None:
        return "not run"
    parts = " + ".join(f"{each[record['suspect']]:.1f}" for each in record["tests"].values())
    said = f"{record['statistic']:.1f}"
    said = f"**{said}**" if record["statistic"] >= limit else said
    wrong = record["target"] is not None and record["suspect"] != record["target"]
    return f"{said} ({parts}){' *wrong*' if wrong else ''}"


def page_with(page: str) -> str:
    """Return the page with today's tables between its markers."""
    return between(page, BEGIN, END, tables())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="networks whose name fits this pattern")
    parser.add_argument("--spc", type=int, default=10, help="images a class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibrate", action="store_true", help="write calibration.json too")
    parser.add_argument("--write", action="store_true", help="write the tables and stop")
    asked = parser.parse_args()
    from excise.files import write_json, write_text

    if asked.write:
        write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8")))
        return 0
    import torch

    torch.set_num_threads(asked.threads)
    data: dict[Any, Any] = {}
    for bundle in networks(asked.only):
        path = RECORDS / f"spc-{asked.spc}" / f"{name_of(bundle)}.json"
        if path.exists():
            continue
        record = scan(bundle, asked.spc, data)
        write_json(path, record)
        took = sum(record["seconds"].values())
        print(f"{record['network']}: S {record['statistic']:.2f}, {took:.0f} s", flush=True)
    if asked.calibrate:
        write_json(CALIBRATION, calibrated(records(10)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
