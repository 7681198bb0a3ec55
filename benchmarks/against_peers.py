"""Each defense's inner work beside a peer's published code: seconds in turn, as ratios.

Claim      never slower (at most 1.05 ×), clearly faster where the peer loops: docs/speed.md
Command    EXCISE_DATA=… python benchmarks/against_peers.py --backdoorbench PATH [--grad-prune PATH]
             [--fork PATH]
           the same with --channels-last                 (theirs in our order of memory, beside it)
           python benchmarks/against_peers.py --write    (the table, into docs/speed.md)
Hardware   one thread, no GPU
Runs       a warm-up of each side, then five pairs: ours, theirs, ours, theirs, …; of each pair the
           ratio of the processor's seconds, of the ratios the median, the lowest and the highest
Time       five minutes each on an idle core, the fork as much again

Seconds    are those the processor worked for this process, which others beside it do not lengthen;
           the clock's are in the record, too

Peers      checkouts of BackdoorBench and, optionally, of Grad-Prune, which overlays it; and of the
           fork of BackdoorBench that has later methods, which can be given alone. They are
           imported from where they lie; nothing of them is in this repository (CC BY-NC). They need
           what their modules import: pandas, opencv (cv2), pyyaml, tqdm, matplotlib
Compared   the same victim (PreActResNet-18 of width 16, the peer's own layout), the same 100 images
           (90 or 10 where a method holds some out), the same steps, batch size and threads. Both
           sides copy the network inside the clock. Ours are given tensors; theirs go through their
           own data set classes, transforms and loader (num_workers=0), as published
Left out   of theirs: every evaluation on test images, plots, tables, saved files, logs and prints.
           Of ours: what comes after the stage that is compared
Record     benchmarks/records/against-peers.json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# A script's own directory is first on the path, so its neighbors need no package.
from dueling import SPC, Duel, Field, Timed, field_of
from duels import DUELS, grad_prune
from fork_duels import FORK_DUELS
from pages import between
from peers import Fork, Peer, commit, grad_prune_of, quiet

HERE = Path(__file__).parent
VICTIM = HERE / "victims" / "cifar10-badnets-1"
RECORD = HERE / "records" / "against-peers.json"
PAGE = HERE.parent / "docs" / "speed.md"
BEGIN, END = "<!-- made by benchmarks/against_peers.py -->", "<!-- end of what it made -->"
#: No ratio above this counts as as fast.
LIMIT = 1.05
#: What a row says in words.
SAID = ("method", "steps", "results", "note")


def fight(duel: Duel, pairs: int) -> dict[str, Any]:
    """Run both sides in turn and return the record's row."""
    ours: list[Timed] = []
    theirs: list[Timed] = []
    for _ in range(1 + min(pairs, duel.pairs)):
        gc.collect()
        ours.append(duel.ours(len(ours)))
        gc.collect()
        with quiet():
            theirs.append(duel.theirs(len(theirs)))
    said = duel.agree(ours[0].result, theirs[0].result) if duel.agree else ""
    del ours[0], theirs[0]  # they warmed up
    ratios = [a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True)]
    clock = [a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)]
    return {
        "method": duel.method,
        "steps": duel.steps,
        "pairs": len(ratios),
        "cpu_seconds_ours": [run.cpu for run in ours],
        "cpu_seconds_theirs": [run.cpu for run in theirs],
        "seconds_ours": [run.seconds for run in ours],
        "seconds_theirs": [run.seconds for run in theirs],
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "ratio_by_the_clock": statistics.median(clock),
        "results": said,
        "note": duel.note,
    }


def duels_of(asked: argparse.Namespace) -> dict[str, tuple[Peer, Callable[[Field], Duel]]]:
    """Return by defense what makes its duel, and whose modules are to be there while it runs."""
    found: dict[str, tuple[Peer, Callable[[Field], Duel]]] = {}
    if asked.backdoorbench is not None:
        peer = Peer(asked.backdoorbench.resolve())
        found |= {name: (peer, partial(make, peer)) for name, make in DUELS.items()}
        if asked.grad_prune is not None:
            module = grad_prune_of(asked.grad_prune.resolve(), peer)
            found["grad-prune"] = (peer, partial(grad_prune, module, peer))
    if asked.fork is not None:
        fork = Fork(asked.fork.resolve())
        found |= {name: (fork, partial(make, fork)) for name, make in FORK_DUELS.items()}
    return found


def measure(asked: argparse.Namespace) -> None:
    """Run the duels asked for; keep every row as soon as it is there."""
    import torch

    from excise.errors import InputError
    from excise.experiments.environment import environment, peak_memory_mib
    from excise.files import write_json

    duels = duels_of(asked)
    torch.set_num_threads(asked.threads)
    logging.disable(logging.CRITICAL)
    field = field_of(asked.victim, channels_last=asked.channels_last)
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows = {row["method"]: row for row in kept.get("rows", [])}
    # What is not given now keeps the commit, and the process the memory, of an earlier run.
    roots = {
        "backdoorbench": asked.backdoorbench, "grad-prune": asked.grad_prune, "fork": asked.fork,
    }  # fmt: skip
    commits = kept.get("peers", {}) | {
        name: commit(root) for name, root in roots.items() if root is not None
    }
    for name, (peer, make) in duels.items():
        if asked.only and name not in asked.only:
            continue
        if asked.channels_last and name not in rows:
            raise InputError(
                f"a row of {name} to put this beside",
                got="a record without",
                remedy="Run it without --channels-last first.",
            )
        with peer.here():
            row = fight(make(field), asked.pairs)
        print(f"{name}: {ratio(row)}; {row['results']}", flush=True)
        if asked.channels_last:
            rows[name]["channels_last"] = {key: row[key] for key in row if key not in SAID}
        else:
            rows[name] = row
        device = torch.device("cpu")
        write_json(RECORD, {
            "environment": environment(device),
            "peers": commits,
            "victim": asked.victim.name,
            "images": SPC * field.data.num_classes,
            "peak_memory_mib": max(peak_memory_mib(device), kept.get("peak_memory_mib", 0)),
            "rows": list(rows.values()),
        })  # fmt: skip


def ratio(row: Mapping[str, Any]) -> str:
    """Return median, lowest and highest; in bold above the limit."""
    said = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    return said if row["ratio"] <= LIMIT else f"**{said}**"


def not_run(done: set[str]) -> list[str]:
    """Return the defenses that have no row: no peer has them."""
    from excise import registry

    names = [row.name for row in registry.rows("defense")]
    return [name for name in names if name not in done and name != "none"]


def table() -> str:
    """Return the page's table and what stands under it, made from the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = sorted(record["rows"], key=lambda row: row["ratio"])
    lines = [
        "| defense | work | ours, s | theirs, s | ours / theirs | by the clock | "
        "theirs in our memory order | pairs |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        seconds = [
            statistics.median(row[key]) for key in ("cpu_seconds_ours", "cpu_seconds_theirs")
        ]
        cells = [
            row["method"], row["steps"], *(f"{value:.2f}" for value in seconds), ratio(row),
            f"{row['ratio_by_the_clock']:.2f}",
            ratio(row["channels_last"]) if "channels_last" in row else "–", str(row["pairs"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", summary(record), ""]
    for row in rows:
        said = "; ".join(part for part in (row["note"], row["results"]) if part)
        if said:
            lines.append(f"* **{row['method']}**: {said}.")
    lines.append("")
    missing = not_run({row["method"] for row in rows})
    lines.append(f"Not run, no code in these peers: {', '.join(missing)}.")
    return "\n".join(lines)


def summary(record: Mapping[str, Any]) -> str:
    """Return how many methods hold the claim, and what it was measured on."""
    rows, made = record["rows"], record["environment"]
    met = sum(row["ratio"] <= LIMIT for row in rows)
    even = [row["channels_last"]["ratio"] for row in rows if "channels_last" in row]
    ordered = (
        f", {sum(r <= LIMIT for r in even)} of {len(even)} in our memory order" if even else ""
    )
    peers = [f"{name} {said[:7]}" for name, said in record["peers"].items() if said]
    return (
        f"At most {LIMIT}: {met} of {len(rows)}{ordered}. {made['device']}, threads: "
        f"{made['threads']}, torch {made['torch']}; victim {record['victim']}, "
        f"{record['images']} images; {', '.join(peers) or 'commits of the peers unknown'}. "
        f"Peak memory of the process, both sides together: {record['peak_memory_mib']} MiB."
    )


def page_with(page: str) -> str:
    """Return the page with the table between its markers."""
    return between(page, BEGIN, END, table())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backdoorbench", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--grad-prune", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--fork", type=Path, metavar="PATH", help="a checkout of it")
    parser.add_argument("--victim", type=Path, default=VICTIM, help="a CIFAR-10 bundle")
    parser.add_argument("--only", nargs="+", default=[], help="these alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--channels-last", action="store_true", help="the peer's network in our order of memory"
    )
    parser.add_argument("--write", action="store_true", help="write the table and stop")
    asked = parser.parse_args()
    from excise.errors import InputError
    from excise.files import write_text

    if asked.write:
        write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8")))
        return 0
    if asked.backdoorbench is None and asked.fork is None:
        parser.error("expected --backdoorbench PATH, --fork PATH or --write, got none")
    if asked.grad_prune is not None and asked.backdoorbench is None:
        parser.error("expected --backdoorbench PATH beside --grad-prune, got none")
    try:
        measure(asked)
    except InputError as error:
        print(f"against_peers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
