"""Grad-Prune as published, told the trigger, on CIFAR-10.

Claim      docs/methods/grad-prune.md, "Measured" (made from the records this script writes)
Command    EXCISE_DATA=… python benchmarks/grad_prune_cifar10.py --workers 2
           python benchmarks/grad_prune_cifar10.py --table        (the tables, from the records)
Hardware   2 cores, no GPU; PreActResNet-18 of width 16
Runs       BadNets and Blended × 3 seeds × SPC 2, 10, 100; one clean twin (seed 0) as the floor
Time       about 90 minutes from nothing; victims and records that exist are kept

Victims    25,000 of the 50,000 training images, the recipe preset "fast"; the other 25,000 are the
           pool the defender draws from. They lie in benchmarks/victims in half precision.
Records    benchmarks/records/grad-prune-cifar10/*.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VICTIMS = HERE / "victims"
RECORDS = HERE / "records" / "grad-prune-cifar10"
ARCH = "excise:preactresnet18,width=16"
ATTACKS = ("badnets", "blended")
SEEDS = (0, 1, 2)
SPCS = (2, 10, 100)
RATES = ("acc", "asr", "ra")


def plant_one(attack: str, seed: int) -> str:
    """Train one victim or twin, unless it is there."""
    out = VICTIMS / f"cifar10-{attack}-{seed}"
    if out.exists():
        return f"{out.name}: there"
    _one_thread()
    from excise.data import load_data
    from excise.experiments.plant import Planting, plant
    from excise.registry import build
    from excise.training import Recipe

    planting = Planting(
        attack=build("attack", attack),
        arch=ARCH,
        recipe=Recipe(**Recipe.PRESETS["fast"], precision="bfloat16"),
        seed=seed,
    )
    card = plant(planting, load_data("cifar10"), out, half=True)
    measured = {key: card["measured"][key] for key in RATES}
    said = ", ".join(f"{key} {rate['value']:.1%}" for key, rate in measured.items() if rate)
    return f"{out.name}: {said}"


def repair_one(attack: str, seed: int, spc: int) -> str:
    """Repair one victim with one sample and write its record, unless it is there."""
    path = RECORDS / f"{attack}-{seed}-spc{spc}.json"
    if path.exists():
        return f"{path.stem}: there"
    _one_thread()
    from excise.attacks import load_victim
    from excise.data import defender_data, load_data
    from excise.defenses import GradPrune
    from excise.experiments.plant import pool_of
    from excise.experiments.repair import Question, run_repair
    from excise.files import write_json
    from excise.inversion import Oracle
    from excise.seeding import Rng

    victim, card = load_victim(VICTIMS / f"cifar10-{attack}-{seed}")
    twin, _ = load_victim(VICTIMS / "cifar10-none-0")
    data = load_data("cifar10")
    assert victim.backdoor is not None
    pool = pool_of(data.train, seed, 0.5).pool
    question = Question(
        model=victim.model,
        method=GradPrune(inverter=Oracle(victim.backdoor.trigger)),
        data=defender_data(pool, spc=spc, rng=Rng(seed).child("sample")),
        seed=seed,
        test=data.test,
        backdoor=victim.backdoor,
        twin=twin.model,
        planted_asr=card["measured"]["asr"]["value"],
        described={
            "spc": spc,
            "source": "cifar10",
            "model": {"arch": ARCH, "attack": card["made"]["attack"], "victim_seed": seed},
        },
        curve_images=0,
    )
    outcome = run_repair(question, command="python benchmarks/grad_prune_cifar10.py")
    write_json(path, outcome.record)
    after = outcome.record["after"]
    return (
        f"{path.stem}: ACC {after['acc']['value']:.1%}, ASR {after['asr']['value']:.1%}, "
        f"RA {after['ra']['value']:.1%}, {len(outcome.repair.edits)} cut, "
        f"{outcome.record['seconds']['repair']:.0f} s"
    )


def _one_thread() -> None:
    # Two torch processes of two threads each starve one another on two cores.
    import torch

    torch.set_num_threads(1)


#: The rows of the table for each setting: a part of the record, and its name.
STAGES = {
    "before": "before",
    "pruned": "after pruning",
    "after": "after fine-tuning",
    "floor": "clean twin",
}


def runs_of(attack: str, spc: int) -> list[dict[str, Any]]:
    """Return the records of one setting, seed by seed."""
    paths = [RECORDS / f"{attack}-{seed}-spc{spc}.json" for seed in SEEDS]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def rates(runs: list[dict[str, Any]], stage: str) -> list[str]:
    """Return mean ACC, ASR with the worst seed's in brackets, and RA of one stage, in percent."""
    # Where nothing was cut, the pruned network is the given one.
    parts = [run[stage] or run["before"] for run in runs]
    acc, asr, ra = (percent([part[key]["value"] for part in parts]) for key in RATES)
    worst = 100 * max(part["asr"]["value"] for part in parts)
    return [acc, f"{asr} ({worst:.1f})", ra]


def mean_der(runs: list[dict[str, Any]]) -> str:
    """Return the mean DER."""
    return f"{sum(run['comparison']['der']['value'] for run in runs) / len(runs):.3f}"


def table() -> str:
    """Return every stage of every setting: the table of docs/methods/grad-prune.md."""
    lines = ["| attack | SPC | filters cut | | ACC | ASR (worst) | RA | DER |", "|-|-|-|-|-|-|-|-|"]
    for attack, spc in itertools.product(ATTACKS, SPCS):
        runs = runs_of(attack, spc)
        if not runs:
            lines.append(f"| {attack} | {spc} | not run | | | | | |")
            continue
        cut = ", ".join(str(len(run["edits"])) for run in runs)
        for stage, name in STAGES.items():
            first = [attack, str(spc), cut] if stage == "before" else ["", "", ""]
            last = mean_der(runs) if stage == "after" else ""
            lines.append("| " + " | ".join([*first, name, *rates(runs, stage), last]) + " |")
    return "\n".join(lines)


def summary() -> str:
    """Return before and after of every setting: the table of the README."""
    lines = [
        "| attack | SPC | ACC before → after | ASR before → after (worst seed) | clean twin's ASR "
        "| RA after | DER |",
        "|-|-|-|-|-|-|-|",
    ]
    for attack, spc in itertools.product(ATTACKS, SPCS):
        runs = runs_of(attack, spc)
        if not runs:
            lines.append(f"| {attack} | {spc} | not run | | | | |")
            continue
        before, after, twin = (rates(runs, stage) for stage in ("before", "after", "floor"))
        lines.append(
            f"| {attack} | {spc} | {before[0]} → {after[0]} | {before[1].split()[0]} → {after[1]} "
            f"| {twin[1].split()[0]} | {after[2]} | {mean_der(runs)} |"
        )
    return "\n".join(lines)


def percent(values: list[float]) -> str:
    """Return the mean of some fractions in percent."""
    return f"{100 * sum(values) / len(values):.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--table", action="store_true", help="print the tables and stop")
    asked = parser.parse_args()
    if asked.table:
        print(table(), summary(), sep="\n\n")
        return 0
    context = multiprocessing.get_context("spawn")
    failed = 0
    with ProcessPoolExecutor(asked.workers, mp_context=context) as pool:
        for stage in ("plant", "repair"):
            futures: list[Future[str]] = []
            if stage == "plant":
                futures.append(pool.submit(plant_one, "none", 0))
                futures += [pool.submit(plant_one, a, s) for s in SEEDS for a in ATTACKS]
            else:
                cells = itertools.product(SEEDS, SPCS[::-1], ATTACKS)
                futures += [pool.submit(repair_one, a, s, spc) for s, spc, a in cells]
            for done in as_completed(futures):
                if (error := done.exception()) is not None:
                    failed += 1
                    print(f"failed: {error}", file=sys.stderr, flush=True)
                else:
                    print(done.result(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
