"""``excise scan``: is there a backdoor in this network?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from excise.commands.defender import opened
from excise.commands.options import (
    Given,
    command_line,
    device_named,
    flags,
    preset,
    print_json,
    said,
)
from excise.commands.outputs import check_free
from excise.console import Story
from excise.data import evenly, split_defender
from excise.experiments.recovered import COUNTED
from excise.experiments.scan_network import NetworkScan, run_network_scan, write_network_scan
from excise.registry import build
from excise.reports.formats import clean as printable
from excise.seeding import Rng

__all__ = ["run"]

_SHOWN = 5
#: The verdict's word -> exit status.
_STATUS = {"nothing": 0, "found": 1, "void": 2}


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Tell whether a network has a backdoor, which class it leads to, and show the trigger.

    Needs a few clean images and no knowledge of the trigger. Writes a record and a page. The
    network stays as it is. Exit status 0: no class stands out; 1: a backdoor is likely; 2: an
    error, or images that do not fit the network, so that nothing can be told.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A bundle's directory, or a weights file (safetensors, or a PyTorch file without code)."""
    images: str
    """Clean images with true labels: a folder with one subfolder per class, or a data set: digits,
    cifar10, gtsrb, parquet:DIR, torchvision:NAME, hub:OWNER/NAME."""
    spc: int | None = None
    """Samples per class; default: all the images."""
    out: Path = Path("scan")
    """Directory of the record and the page."""
    method: str = "combined"
    """Name of the scanner (`excise list scanners`). Its own options are below."""
    preset: str = "published"
    """Named settings of the scanner; its own options stand above them."""
    seed: int = 0
    """Stands for everything drawn; the same seed gives the same result."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    overwrite: bool = False
    """Replace the output directory if it exists."""
    json: bool = False
    """Print the record as JSON."""
    options: Annotated[Any, tyro.conf.arg(name="")] = field(default=None)
    given: Annotated[Given, tyro.conf.arg(name="")] = field(default_factory=Given)


def run(arguments: list[str]) -> int:
    """Scan a network and print what was found; return 0 if no class stands out."""
    method = said(arguments, "--method", "combined")
    named = said(arguments, "--preset", "published")
    asked = flags(
        Scan,
        arguments,
        "scan",
        model=tyro.MISSING,
        images=tyro.MISSING,
        method=method,
        preset=named,
        options=build("scanner", method, preset("scanner", method, named)),
    )
    check_free(
        asked.out, asked.overwrite, inputs=(asked.model, asked.images, asked.given.class_map)
    )
    device = device_named(asked.device)
    with Story() as story:
        story.stage(f"reading {asked.model} and {asked.images}")
        scanned = run_network_scan(
            _question(asked, device, story),
            command=command_line("scan", arguments),
            on_round=story.round,
            on_stage=story.stage,
        )
        page = write_network_scan(asked.out, scanned)
    if asked.json:
        print_json(scanned.record)
    else:
        _print(scanned.record, page)
    return _STATUS[scanned.record["verdict"]["status"]]


def _question(asked: Scan, device: torch.device, story: Story) -> NetworkScan:
    network, _, mine, pool = opened(asked.given, asked.model, asked.images, device, story)
    rng = Rng(asked.seed).child("sample")
    split = split_defender(mine, spc=asked.spc, rng=rng, needs_validation=False, pool=pool)
    return NetworkScan(
        model=network,
        scanner=asked.options,
        data=split.data.to(device),
        unseen=evenly(split.left, 2 * COUNTED).load() if split.left is not None else None,
        seed=asked.seed,
        described={
            "spc": asked.spc,
            "source": asked.images,
            "model": {
                "name": Path(asked.model).name,
                "arch": network.arch,
                "classes": list(network.classes),
                "input_size": list(network.input_shape[1:]),
            },
        },
    )


def _print(record: dict[str, Any], page: Path) -> None:
    console = Console(highlight=False)
    tests = list(record["classes"][0]["tests"])
    table = Table(box=None, pad_edge=False)
    for name in ("class", "suspicion", *tests):
        table.add_column(name, justify="left" if name == "class" else "right")
    ranked = sorted(record["classes"], key=lambda one: -one["suspicion"])
    for one in ranked[:_SHOWN]:
        figures = (one["suspicion"], *(one["tests"][test] for test in tests))
        table.add_row(printable(one["name"]), *(f"{figure:.2f}" for figure in figures))
    console.print(table, markup=False)
    if len(ranked) > _SHOWN:
        console.print(f"… and {len(ranked) - _SHOWN} classes that are less suspicious")
    console.print(record["verdict"]["sentence"], markup=False)
    for note in record["notes"]:
        console.print(note, markup=False)
    print(f"page: {page}")
