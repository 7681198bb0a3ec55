"""``excise evaluate``: measure a network, or compare two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from excise.commands.options import Given, backdoor_of, device_named, flags, print_json
from excise.console import Story
from excise.data import evenly
from excise.evaluation import Evaluation, Limits, Rate, check, compare, evaluate, judge, voided
from excise.experiments.doubts import doubts
from excise.models import load_model
from excise.seeding import Rng

__all__ = ["run"]

#: Images that tell whether they are prepared as in training; more tell no more.
DOUBTED = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a network on test images; with a second one, compare the two image by image."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A bundle's directory, or a weights file."""
    after: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[AFTER]")] = None
    """A second one, compared with the first."""
    images: str
    """Test images with true labels: a folder, or a data set, whose test part is used."""
    trigger: str | None = None
    """A victim's directory, or in words: badnets,size=3,row=-3,column=-3,target=0. Without it
    only clean accuracy is measured."""
    twin: Path | None = None
    """Bundle of the clean twin, whose figures are the floor."""
    seed: int = 0
    """Draws the bootstrap samples of the intervals."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    json: bool = False
    """Print JSON."""
    given: Annotated[Given, tyro.conf.arg(name="")] = field(default_factory=Given)
    limits: Limits = field(default_factory=Limits)


def run(arguments: list[str]) -> int:
    """Print the figures; comparing two, 1 if the second is not repaired, or harmed, or if nothing
    can be said."""
    asked = flags(Evaluate, arguments, "evaluate", model=tyro.MISSING, images=tyro.MISSING)
    device = device_named(asked.device)
    with Story() as story:
        network = asked.given.network(asked.model).to(device)
        images, order = asked.given.images(
            network, asked.images, asked.given.measured_split(asked.images)
        )
        story.stage(order)
        test = images.to(device)
        backdoor = backdoor_of(asked.trigger, network) if asked.trigger else None
        measure = partial(
            evaluate,
            test=test,
            trigger=backdoor.trigger if backdoor else None,
            rule=backdoor.rule if backdoor else None,
        )
        story.stage(f"measuring on {len(test):,} images")
        before = measure(network)
        findings = doubts(network, evenly(test, DOUBTED), before)
        after = floor = None
        if asked.after is not None:
            second = asked.given.network(asked.after).to(device)
            after = measure(second)
        if asked.twin is not None:
            floor = measure(load_model(asked.twin).to(device))
    record: dict[str, Any] = {
        "version": 1,
        "kind": "evaluation",
        "before": before.to_json(),
        "after": after.to_json() if after else None,
        "floor": floor.to_json() if floor else None,
    }
    status = 0
    if after is not None:
        comparison = compare(before, after, Rng(asked.seed), floor)
        findings += check(before, after, comparison, floor=floor, test=test,
                          model_before=network, model_after=second)  # fmt: skip
        verdict = voided(judge(before, after, comparison, floor, asked.limits), findings)
        record |= {"comparison": comparison.to_json(), "verdict": verdict.to_json()}
        status = 0 if verdict.ok else 1
    # Some doubts are among the checks too.
    record["checks"] = [finding.to_json() for finding in dict.fromkeys(findings)]
    if asked.json:
        print_json(record)
        return status
    console = Console(highlight=False)
    shown = {"before" if after else "network": before, "after": after, "clean twin": floor}
    console.print(_table({name: e for name, e in shown.items() if e is not None}))
    if after is not None:
        console.print(record["verdict"]["sentence"], markup=False)
    for finding in record["checks"]:
        console.print(f"{finding['level']}: {finding['message']}", markup=False)
    return status


def _table(measured: Mapping[str, Evaluation]) -> Table:
    """Return a row a figure and a column a network, in percent with 95 % intervals."""
    table = Table("", *measured)
    for key, name in (
        ("acc", "clean accuracy"),
        ("asr", "attack success rate"),
        ("ra", "recovery accuracy"),
        ("target_recall", "recall of the target class"),
    ):
        rates = [getattr(evaluation, key) for evaluation in measured.values()]
        if any(rate is not None for rate in rates):
            table.add_row(name, *map(_said, rates))
    return table


def _said(rate: Rate | None) -> str:
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return "not measured"
    return f"{rate.value:.1%} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"
