"""Soft-Prune told nothing: victims and clean networks, at several budgets and samples.

Claim      docs/methods/soft-prune.md and, with --audit, docs/audit.md (their tables are made from
           the records this script writes)
Command    EXCISE_DATA=… python benchmarks/trigger_free.py --only 'cifar10-*' --spc 10
           python benchmarks/trigger_free.py --write    (the tables, into the pages and the README)
Hardware   one core
Runs       one a network, budget and sample (--seed draws the images and what the method draws);
           what exists is kept, unless it was made with other settings than today's defaults
Time       four to six minutes a network of 10 classes, measuring included; up to twice as long
           again for an audit

Images     drawn from the training images the network never saw; neither trigger nor target is told
Measured   on --test-images test images, beside the network's clean twin where the zoo has it
Records    benchmarks/records/trigger-free/spc-N/NETWORK-sSEED.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
from pages import between
from scan_networks import images_of, name_of, networks
from zoo import cells

if TYPE_CHECKING:
    from excise.attacks import Victim
    from excise.defenses import SoftPrune
    from excise.types import DefenderData, Defense, LabelledImages

HERE = Path(__file__).parent
RECORDS = HERE / "records" / "trigger-free"
PAGE = HERE.parent / "docs" / "methods" / "soft-prune.md"
AUDIT_PAGE = HERE.parent / "docs" / "audit.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- made by benchmarks/trigger_free.py -->", "<!-- end of what it made -->"
BUDGETS = (2, 10, 100)
#: Networks on which the method was chosen. The others saw only what was frozen, form after form.
DEVELOPMENT = (
    "cifar10-badnets-1", "cifar10-blended-1", "cifar10-lf-1", "cifar10-ftrojan-0",
    "cifar10-trojannn-0", "cifar10-none-0", "cifar10-sig-1", "cifar10-wanet-1",
)  # fmt: skip

#: By SPC, in points: how far ASR may be above the clean twin's, RA below it, ACC below what it was;
#: recall of the target may be 3 below the twin's.
GOALS = {2: (8.0, None, 4.0), 10: (4.0, 10.0, 2.0), 100: (1.0, 5.0, 1.0)}
RECALL = 3.0

Record = dict[str, Any]


def twin_of(network: str) -> Path | None:
    """Return the zoo's clean twin of a victim, if it is there and was drawn by the same seed."""
    known = {cell.name: cell for cell in cells()}
    cell = known.get(network)
    if cell is None or cell.twin is None:
        return None
    twin = known[cell.twin]
    return twin.out if twin.seed == cell.seed and twin.out.exists() else None


def method() -> SoftPrune:
    """Return what every network is repaired with: the defaults of today."""
    from excise.defenses import SoftPrune
    from excise.inversion import Combined

    return SoftPrune(inverter=Combined())


def settings(of: Defense | None = None) -> Record:
    """Return a method's settings as a record holds them; without one, today's of Soft-Prune."""
    from excise.registry import spec_of

    spec: Record = json.loads(json.dumps(spec_of("defense", of or method())))
    return spec


def prepared(
    bundle: Path, spc: int, seed: int, count: int, data: dict[Any, Any]
) -> tuple[Victim, Record, DefenderData, LabelledImages]:
    """Return a network, how it was made, the defender's images, and those it is measured on.

    Args:
        bundle: of the zoo.
        spc: clean images a class.
        seed: draws them.
        count: test images, at most.
        data: images that were read before, by their source.
    """
    import torch

    from excise.attacks import load_victim
    from excise.data import defender_data
    from excise.experiments.plant import pool_of
    from excise.seeding import Rng

    victim, card = load_victim(bundle)
    made, images = card["made"], images_of(card, data)
    pool = pool_of(images.train, made["seed"], made["data"]["victim_images"]).pool
    step = max(1, len(images.test) // count)
    return (
        victim,
        made,
        defender_data(pool, spc=spc, rng=Rng(seed).child("sample")),
        images.test.subset(torch.arange(0, len(images.test), step)[:count]),
    )


def repair(
    bundle: Path,
    spc: int,
    seed: int,
    count: int,
    data: dict[Any, Any],
    audited: bool = False,
    by: Defense | None = None,
) -> Record:
    """Repair one network, measure it before and after, and attack the result if asked to.

    Args:
        bundle: of the zoo.
        spc: clean images a class.
        seed: draws them, and what the method draws.
        count: test images.
        data: images that were read before, by their source.
        audited: attack the repaired network.
        by: a method that is told nothing; without one, Soft-Prune.
    """
    from excise.experiments.repair import Question, run_repair
    from excise.models import load_model
    from excise.types import AllToOne

    by = by or method()
    victim, made, own, test = prepared(bundle, spc, seed, count, data)
    backdoor = victim.backdoor
    twin = twin_of(bundle.name) if backdoor is not None else None
    question = Question(
        model=victim.model,
        method=by,
        data=own,
        seed=seed,
        test=test,
        backdoor=backdoor,
        twin=load_model(twin) if twin is not None else None,
        audited=audited,
    )
    found = run_repair(question).record
    rule = backdoor.rule if backdoor is not None else None
    kept = ("notes", "seconds", "before", "after", "floor", "comparison", "environment")
    return {
        "network": name_of(bundle),
        "attack": made["attack"]["name"],
        "target": test.classes[rule.target] if isinstance(rule, AllToOne) else None,
        "spc": spc,
        "seed": seed,
        "defense": settings(by),
        "twin": twin.name if twin is not None else None,
        **{key: found[key] for key in kept},
        **({"audit": found["audit"]} if audited else {}),
    }


def records(*, today: bool = True) -> list[Record]:
    """Return the records that were made with today's settings, or those that were not."""
    every = (json.loads(path.read_text()) for path in sorted(RECORDS.rglob("*.json")))
    wanted = settings()
    return [record for record in every if (record["defense"] == wanted) is today]


def summary() -> str:
    """Return the README's table: reported victims, 10 images a class, means over all runs."""
    lines = [
        "| attack | data | runs | ACC before → after | ASR before → after (worst) | "
        "clean twin's ASR | RA after |",
        "|-|-|-|-|-|-|-|",
    ]
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records():
        if r["network"] not in DEVELOPMENT and r["after"]["asr"] and r["spc"] == 10:
            key = r["network"].partition("-")[0], r["attack"]
            groups.setdefault(key, []).append(r)
    for (data, attack), own in sorted(groups.items()):
        pairs = [f"{rate(own, 'before', k)} → {rate(own, 'after', k)}" for k in ("acc", "asr")]
        if len(own) > 1:
            pairs[1] += f" ({max(points(r['after'], 'asr') for r in own):.1f})"
        rest = [rate(own, "floor", "asr"), rate(own, "after", "ra")]
        lines.append(f"| {' | '.join([attack, data, str(len(own)), *pairs, *rest])} |")
    return "\n".join(lines)


def tables() -> str:
    """Return the tables of all records of today's settings: victims, then clean networks."""
    found, lines = records(), list[str]()
    for title, wanted in (("Victims it was not chosen on", False), ("Development", True)):
        some = [r for r in found if (r["network"] in DEVELOPMENT) is wanted and r["after"]["asr"]]
        if not some:
            continue
        lines += victims(title, some)
        for spc in BUDGETS:
            own = [r for r in some if r["spc"] == spc]
            if own:
                ders = [r["comparison"]["der"]["value"] for r in own]
                lines += ["", f"SPC {spc}: DER {min(ders):.3f} at worst, {mean(ders):.3f} in the "
                          f"mean, over {len(own)} runs."]  # fmt: skip
        with_twin = [r for r in some if r["floor"]]
        if with_twin:
            lines += ["", "Points by which a goal is missed:", "", *against_goals(with_twin)]
        lines.append("")
    old = [r for r in records(today=False) if r["after"]["asr"]]
    if old:
        lines += [*victims("An earlier form, not run again with today's", old), ""]
    clean = [r for r in found if not r["after"]["asr"]]
    if clean:
        lines += ["**Clean networks, repaired all the same**", "",
                  "| network | SPC | runs | cut at all | ACC before | ACC after | largest loss |",
                  "|-|-|-|-|-|-|-|"]  # fmt: skip
    groups: dict[tuple[str, int], list[Record]] = {}
    for r in clean:
        # Of the small ones, two dozen of little interest each, a row for every kind.
        name = r["network"].rsplit("-", 1)[0] if "/" in r["network"] else r["network"]
        groups.setdefault((name, r["spc"]), []).append(r)
    for (name, spc), own in sorted(groups.items()):
        losses = [points(r["before"], "acc") - points(r["after"], "acc") for r in own]
        cut = sum(r["notes"][0].startswith("Unlearned") for r in own)
        lines.append(f"| {name} | {spc} | {len(own)} | {cut} | {rate(own, 'before', 'acc')} | "
                     f"{rate(own, 'after', 'acc')} | {max(losses):.1f} |")  # fmt: skip
    return "\n".join(lines).rstrip()


def victims(title: str, some: Sequence[Record]) -> list[str]:
    """Return a table of victims, one row for each and each budget."""
    lines = [
        f"**{title}**", "",
        "| victim | SPC | runs | before: ACC / ASR / RA | after: ACC / ASR / RA (worst ASR) | "
        "twin's: ASR / RA | recall of the target | right class | DER |",
        "|-|-|-|-|-|-|-|-|-|",
    ]  # fmt: skip
    for name, spc in sorted(dict.fromkeys((r["network"], r["spc"]) for r in some)):
        own = [r for r in some if (r["network"], r["spc"]) == (name, spc)]
        lines.append(row(name, spc, own))
    return lines


def audits() -> str:
    """Return what attacks on the repaired networks came to, of all records that have any."""
    word = {True: "withstood", False: "**not withstood**", None: "cannot be told"}
    attacks = ("invert-again", "reactivation", "relearning")
    lines = [f"| network | SPC | ASR after | {' | '.join(attacks)} |", "|-|-|-|-|-|-|"]
    for r in records():
        if "audit" in r:
            passed = {one["name"]: word[one["passed"]] for one in r["audit"]["findings"]}
            said = " | ".join(passed[name] for name in attacks)
            lines.append(f"| {r['network']} | {r['spc']} | {rate([r], 'after', 'asr')} | {said} |")
    return "\n".join(lines)


def three(measured: Record) -> str:
    """Return ACC / ASR / RA in percent."""
    return " / ".join(f"{points(measured, key):.1f}" for key in ("acc", "asr", "ra"))


def points(rates: Record, key: str) -> float:
    return 100 * float(rates[key]["value"])


def against_goals(found: Sequence[Record]) -> list[str]:
    """Return a table of what each run with a twin misses of the goals, in points."""
    lines = ["| victim | SPC | seed | ACC | ASR | RA | recall of the target |", "|-|-|-|-|-|-|-|"]
    for r in sorted(found, key=lambda r: (r["network"], r["spc"], r["seed"])):
        before, after, floor = r["before"], r["after"], r["floor"]
        above, below, drop = GOALS[r["spc"]]
        recall = "target_recall"
        over = [
            points(before, "acc") - points(after, "acc") - drop,
            points(after, "asr") - points(floor, "asr") - above,
            None if below is None else points(floor, "ra") - points(after, "ra") - below,
            points(floor, recall) - points(after, recall) - RECALL,
        ]
        said = ["–" if o is None else "met" if o < 0.05 else f"{o:.1f}" for o in over]
        lines.append(f"| {r['network']} | {r['spc']} | {r['seed']} | {' | '.join(said)} |")
    return lines


def rate(own: Sequence[Record], when: str, key: str) -> str:
    values = [points(r[when], key) for r in own if r[when] and r[when].get(key)]
    return f"{mean(values):.1f}" if values else "–"


def row(name: str, spc: int, own: Sequence[Record]) -> str:
    def three(when: str, *keys: str) -> str:
        return " / ".join(rate(own, when, key) for key in keys)

    worst = max(points(r["after"], "asr") for r in own)
    right = sum(f"toward {r['target']!r}." in r["notes"][0] for r in own)
    named = f"{right} of {len(own)}" if own[0]["target"] is not None else "–"
    ders = mean(r["comparison"]["der"]["value"] for r in own)
    return (
        f"| {name} | {spc} | {len(own)} | {three('before', 'acc', 'asr', 'ra')} | "
        f"{three('after', 'acc', 'asr', 'ra')} ({worst:.1f}) | {three('floor', 'asr', 'ra')} | "
        f"{rate(own, 'before', 'target_recall')} → {rate(own, 'after', 'target_recall')} | "
        f"{named} | {ders:.3f} |"
    )


def page_with(page: str, table: str | None = None) -> str:
    """Return a page with a table, or the method's own, between its markers."""
    return between(page, BEGIN, END, tables() if table is None else table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="networks whose name fits this pattern")
    parser.add_argument("--spc", type=int, default=10, help="images a class")
    parser.add_argument("--seed", type=int, default=0, help="draws the images, and the method's")
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--audit", action="store_true", help="attack what was repaired, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the tables and stop")
    asked = parser.parse_args()
    from excise.files import write_json, write_text

    if asked.write:
        for page, table in ((PAGE, tables()), (AUDIT_PAGE, audits()), (README, summary())):
            write_text(page, page_with(page.read_text(encoding="utf-8"), table))
        return 0
    import torch

    torch.set_num_threads(asked.threads)
    data, wanted = dict[Any, Any](), settings()
    for bundle in networks(asked.only):
        path = RECORDS / f"spc-{asked.spc}" / f"{name_of(bundle)}-s{asked.seed}.json"
        there = json.loads(path.read_text()) if path.exists() else {}
        if there.get("defense") == wanted and (not asked.audit or "audit" in there):
            continue
        start = time.perf_counter()
        record = repair(bundle, asked.spc, asked.seed, asked.test_images, data, asked.audit)
        write_json(path, record)
        said = [
            " / ".join(
                f"{100 * record[when][key]['value']:.1f}"
                for key in ("acc", "asr", "ra")
                if record[when][key]
            )
            for when in ("before", "after")
        ]
        took = f"{time.perf_counter() - start:.0f} s"
        print(f"{name_of(bundle)}: {' → '.join(said)}, {record['notes'][0]} {took}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
