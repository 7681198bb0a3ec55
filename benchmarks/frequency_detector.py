"""The frequency detector on every victim: TPR, FPR, F1, AUROC, honestly including smooth triggers.

Claim      the table of docs/methods/frequency.md (made from the records this script writes)
Command    EXCISE_DATA=… python benchmarks/frequency_detector.py
           python benchmarks/frequency_detector.py --table    (the table, from the records)
           python benchmarks/frequency_detector.py --write    (the same, into the page)
Hardware   one core; a GPU if there is one
Runs       one detector a data set, seed 0; every victim of benchmarks/victims with a trigger
Time       with the preset "fast" three minutes of one core a data set, 15 seconds a victim;
           "published" takes fifty times that. What exists is kept

Detectors  learn from the 25,000 training images of the defender's pool of seed 0: all clean, no
           test image among them. They lie in benchmarks/detectors
Measured   on all test images, clean, and each with the victim's trigger, rounded to 8 bits
Records    benchmarks/records/frequency-detector/DATA-PRESET/VICTIM.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VICTIMS = HERE / "victims"
DETECTORS = HERE / "detectors"
RECORDS = HERE / "records" / "frequency-detector"
PAGE = HERE.parent / "docs" / "methods" / "frequency.md"
PRESETS = ("fast", "published")
SETS = ("cifar10", "gtsrb")
SEED = 0


def victims_of(data: str) -> list[Path]:
    """Return the victims with a trigger that were trained on ``data``."""
    cards = sorted(VICTIMS.glob("*/card.json"))
    return [
        path.parent
        for path in cards
        if (path.parent / "trigger.json").is_file() and source_of(path) == data
    ]


def source_of(card: Path) -> str:
    said: str = json.loads(card.read_text())["made"]["data"]["source"]
    return said


def fingerprint(*files: Path) -> str:
    """Return a hash of some files, by which a record of an older victim or detector is known."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def detector_of(data: Any, preset: str, device: str) -> tuple[Any, dict[str, Any], str]:
    """Return the detector of a data set, its description and its fingerprint; fitted if missing."""
    from excise.detection import Frequency, load_scorer, save_scorer
    from excise.experiments.environment import environment
    from excise.experiments.plant import pool_of
    from excise.registry import spec_of
    from excise.seeding import Rng

    directory = DETECTORS / f"{data.name}-{preset}"
    if not directory.exists():
        import torch

        method = Frequency(**Frequency.PRESETS[preset])
        pool = pool_of(data.train, SEED, 0.5).pool
        start, cpu = time.perf_counter(), time.process_time()
        scorer = method.fit(
            pool.images.to(device),
            Rng(SEED).child("detector"),
            on_round=lambda row: print(
                f"{directory.name}: epoch {row['epoch']} of {row['epochs']}, "
                f"loss {row['loss']:.4f}, {row['seconds']:.0f} s",
                flush=True,
            ),
        )
        description = {
            "detector": spec_of("detector", method),
            "preset": preset,
            "seed": SEED,
            "learned_from": f"{data.name}: {len(pool):,} training images, the defender's pool",
            "seconds": {
                "fit": time.perf_counter() - start,
                "processor": time.process_time() - cpu,
            },
            "made_on": environment(torch.device(device)),
        }
        save_scorer(directory, scorer, description)
    scorer, said = load_scorer(directory)
    return scorer, said, fingerprint(directory / "detector.safetensors")


def measure(data_name: str, preset: str, device: str) -> None:
    """Fit the detector of one data set and write a record for every victim."""
    import torch

    from excise.attacks import load_victim
    from excise.data import load_data
    from excise.evaluation.detection import detection_figures
    from excise.experiments.environment import environment
    from excise.files import write_json
    from excise.types import round_to_8_bits

    data = load_data(data_name)
    scorer, described, mark = detector_of(data, preset, device)
    assert data.test is not None
    clean = None
    for directory in victims_of(data_name):
        path = RECORDS / f"{data_name}-{preset}" / f"{directory.name}.json"
        trigger_mark = fingerprint(directory / "trigger.json", directory / "trigger.safetensors")
        marks = {"detector": mark, "trigger": trigger_mark}
        if path.exists() and json.loads(path.read_text())["fingerprints"] == marks:
            continue
        if clean is None:
            clean = scorer(data.test.images).numpy()
        victim, card = load_victim(directory)
        assert victim.backdoor is not None
        trigger, start = victim.backdoor.trigger, time.perf_counter()
        triggered = torch.cat(
            [scorer(round_to_8_bits(trigger(images))) for images, _ in data.test.batches(500)]
        ).numpy()
        figures = detection_figures(clean, triggered)
        write_json(path, {
            "version": 1,
            "kind": "image-detection",
            "victim": directory.name,
            "attack": card["made"]["attack"],
            "victim_seed": card["made"]["seed"],
            "data": data_name,
            "detector": described["detector"],
            "preset": preset,
            "seed": SEED,
            **figures.to_json(),
            "seconds": {"score": time.perf_counter() - start, **described["seconds"]},
            "notes": list(scorer.notes),
            "made_on": environment(torch.device(device)),
            "fingerprints": marks,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        })  # fmt: skip
        print(
            f"{path.stem}: TPR {figures.tpr.value:.1%}, FPR {figures.fpr.value:.1%}, "
            f"F1 {figures.f1:.3f}, AUROC {figures.auroc:.4f}",
            flush=True,
        )


def table(preset: str) -> str:
    """Return a row for every attack, data set and victim; what was not run says so."""
    from excise.registry import rows

    lines = [
        "| attack | data | victim's seed | TPR | FPR | F1 | AUROC | n |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for attack in (row.name for row in rows("attack") if row.name != "none"):
        for data in SETS:
            found = [
                record
                for path in sorted((RECORDS / f"{data}-{preset}").glob("*.json"))
                if (record := json.loads(path.read_text()))["attack"]["name"] == attack
            ]
            if not found:
                lines.append(f"| {attack} | {data} | | not run | | | | |")
            for record in sorted(found, key=lambda r: (r["victim_seed"], r["victim"])):
                cells = [
                    attack, data, str(record["victim_seed"]),
                    percent(record["tpr"]), percent(record["fpr"]),
                    f"{record['f1']:.3f}", f"{record['auroc']:.4f}",
                    f"{record['tpr']['n']:,} + {record['fpr']['n']:,}",
                ]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page_with(page: str) -> str:
    """Return the page with the table of every preset of which there is a record."""
    for preset in PRESETS:
        begin, end = f"<!-- table {preset} -->\n", "\n<!-- end -->"
        before, rest = page.split(begin)
        made = table(preset) if list(RECORDS.glob(f"*-{preset}/*.json")) else "Not run."
        page = before + begin + made + rest[rest.index(end) :]
    return page


def percent(rate: dict[str, Any]) -> str:
    """Return a rate in percent with its 95 % interval."""
    value, low, high = (f"{100 * rate[key]:.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--preset", default="fast", choices=PRESETS)
    parser.add_argument("--device", default="cpu", help="where to fit: cpu or cuda")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    asked = parser.parse_args()
    if asked.write:
        PAGE.write_text(page_with(PAGE.read_text()))
        return 0
    if asked.table:
        print(table(asked.preset))
        return 0
    for data in asked.data:
        measure(data, asked.preset, asked.device)
    print(table(asked.preset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
