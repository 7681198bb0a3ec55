"""What every part of Soft-Prune does: the same triggers, unlearned with one part changed.

Claim      docs/methods/soft-prune.md (its table of ablations is made from the records this writes)
Command    EXCISE_DATA=… python benchmarks/ablations.py --only 'cifar10-badnets-1'
           python benchmarks/ablations.py --write    (the table, into the page)
Hardware   one core
Runs       one a network and row; what exists is kept, unless it was made with other settings or
           on another number of test images
Time       about fifteen minutes a network

Networks   development victims, on which the method was chosen; SPC 10, seed 0
Triggers   found once a network by today's ``combined``; every row unlearns the same, but for the
           last three
Measured   on --test-images test images, after the repair
Records    benchmarks/records/ablations/NETWORK.json
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own directory is first on the path, so its neighbors need no package.
import trigger_free
from pages import between
from scan_networks import VICTIMS
from trigger_free import PAGE, Record, points, prepared, three

if TYPE_CHECKING:
    from torch import nn

    from excise.evaluation import Evaluation
    from excise.types import DefenderData, Defense, RecoveredTrigger

RECORDS = Path(__file__).parent / "records" / "ablations"
BEGIN, END = "<!-- made by benchmarks/ablations.py -->", "<!-- end of the ablations -->"
SPC, SEED = 10, 0
NETWORKS = (
    "cifar10-badnets-1", "cifar10-lf-1", "cifar10-wanet-1", "cifar10-blended-1", "cifar10-sig-1",
)  # fmt: skip
#: No bound on what all gates together cost: each costs ρ.
UNBOUNDED = 1e9
#: What is changed, by what the table calls it.
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "**the method**": {},
    "no channel cut first": {"divergence": None},
    "a gate a filter": {"grain": "filter"},
    "what still leads to the target does not count by itself (κ = 0)": {"target_weight": 0.0},
    "a closed gate costs .001 however many there are": {"total_penalty": UNBOUNDED},
    "a closed gate costs nothing (ρ = 0)": {"penalty": 0.0},
    "both as in version 2": {"target_weight": 0.0, "total_penalty": UNBOUNDED},
    "clean images count as triggered ones (ν = 1)": {"clean_weight": 1.0},
    "triggers no stronger than found (boost 1)": {"boost": 1.0},
    "300 steps": {"steps": 300},
    "the best trigger alone": {"max_triggers": 1},
}
CUT, SMALL, TRUE = (
    "nothing but the cut (BNP)",
    "the smallest pattern and waves, not what batch norms remember",
    "the true trigger",
)
ROWS = (*FIELDS, CUT, SMALL, TRUE)


@dataclass(frozen=True, eq=False)
class Given:
    """An inverter that hands over what was found before.

    Args:
        found: the triggers, the best first.
    """

    found: Sequence[RecoveredTrigger]

    def fit(self, model: nn.Module, data: DefenderData, rng: object, **_: object) -> Sequence[Any]:
        return self.found


class Case:
    """A victim, the defender's images, and the triggers found with them once one asks."""

    def __init__(self, network: str, count: int, read: dict[Any, Any]) -> None:
        from excise.seeding import Rng

        bundle = VICTIMS / network
        self.victim, _, self.data, self.test = prepared(bundle, SPC, SEED, count, read)
        self.rng = Rng(SEED).child("method")
        self._found: Sequence[RecoveredTrigger] | None = None

    def measured(self, model: nn.Module) -> Record:
        """Return ACC, ASR, RA and the target's recall on the test images."""
        from excise.evaluation import evaluate

        known = self.victim.backdoor
        assert known is not None
        found: Evaluation = evaluate(model, self.test, trigger=known.trigger, rule=known.rule)
        return found.to_json()

    def found(self) -> Sequence[RecoveredTrigger]:
        """Return the triggers that ``combined`` finds."""
        from excise.inversion import Combined

        if self._found is None:
            self._found = Combined().fit(self.victim.model, self.data, self.rng.child("invert"))
            if not self._found:
                raise SystemExit("expected a trigger to be found, got none: there is nothing to do")
        return self._found

    def smallest(self) -> Sequence[RecoveredTrigger]:
        """Return the smallest pattern and waves that lead to the class that was found."""
        from excise.inversion.finding import smallest
        from excise.types import RecoveredTrigger

        target = self.found()[0].target
        assert target is not None
        rng = self.rng.child("invert")
        found = smallest(target, self.victim.model, self.data.train, rng)
        return [RecoveredTrigger(one, target) for one in found]

    def true(self) -> Sequence[RecoveredTrigger]:
        """Return the victim's own trigger, with its class."""
        from excise.types import AllToOne, Evidence, RecoveredTrigger

        known = self.victim.backdoor
        assert known is not None
        assert isinstance(known.rule, AllToOne)
        return [RecoveredTrigger(known.trigger, known.rule.target, Evidence(told=True))]

    def method(self, row: str) -> Defense:
        """Return what a row repairs with."""
        from excise.defenses import BNP, SoftPrune

        if row == CUT:
            return BNP()
        triggers = {SMALL: self.smallest, TRUE: self.true}.get(row, self.found)
        return SoftPrune(inverter=Given(triggers()), **FIELDS.get(row, {}))


def settings(row: str) -> Record:
    """Return what a row's record says it was made with, defaults included."""
    from excise.defenses import BNP, SoftPrune
    from excise.inversion import Combined

    if row == CUT:
        return trigger_free.settings(BNP())
    # The others unlearn what ``combined`` found, or at least toward its class.
    return trigger_free.settings(SoftPrune(inverter=Combined(), **FIELDS.get(row, {})))


def table() -> str:
    """Return the table: a row a change, a column a network."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))}
    names = [name for name in NETWORKS if name in found]
    lines = ["| what | " + " | ".join(names) + " |", "|" + "-|" * (len(names) + 1)]
    before = [figures(found[name]["before"]) for name in names]
    lines.append(f"| before | {' | '.join(before)} |")
    for row in ROWS:
        cells = [cell_of(found[name], row) for name in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell_of(record: Record, row: str) -> str:
    own = record["rows"].get(row)
    return figures(own["after"]) if own and own["settings"] == settings(row) else "not run"


def figures(measured: Record) -> str:
    return f"{three(measured)}, {points(measured, 'target_recall'):.0f}"


def page_with(page: str) -> str:
    """Return the page with the table of the records that are there."""
    return between(page, BEGIN, END, table())


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

    from excise.experiments.environment import environment

    torch.set_num_threads(asked.threads)
    read = dict[Any, Any]()
    for network in fnmatch.filter(NETWORKS, asked.only):
        path = RECORDS / f"{network}.json"
        there = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        rows = {
            row: made
            for row, made in there["rows"].items()
            if made["settings"] == settings(row) and made["after"]["n"] == asked.test_images
        }
        left = [row for row in ROWS if row not in rows]
        if not left:
            continue
        case = Case(network, asked.test_images, read)
        before = case.measured(case.victim.model)
        triggers = [type(one.trigger).__name__ for one in case.found()]
        print(f"{network}: before {figures(before)}; {', '.join(triggers)}", flush=True)
        for row in left:
            start = time.perf_counter()
            done = case.method(row).repair(case.victim.model, case.data, case.rng)
            seconds = time.perf_counter() - start
            after = case.measured(done.model)
            rows[row] = {"settings": settings(row), "after": after, "seconds": seconds}
            record = {
                "network": network, "spc": SPC, "seed": SEED, "triggers": triggers,
                "environment": environment(torch.device("cpu")), "before": before, "rows": rows,
            }  # fmt: skip
            write_json(path, record)
            print(f"{network}, {row}: {figures(after)}, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
