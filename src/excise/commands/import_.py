"""``excise import``: a network that another project's tools wrote, as a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from excise.commands.options import flags, print_json
from excise.commands.outputs import check_free
from excise.data.sources import list_source
from excise.experiments.backdoorbench import import_backdoorbench
from excise.models.weights import MAX_BYTES

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a bundle of a network that another project's tools wrote.

    Nothing in the file is run: it is read as plain data. What was taken over and what was not is
    printed, and stands in the bundle's card.json under `imported`.
    """

    source: Annotated[Literal["backdoorbench"], tyro.conf.Positional]
    """What wrote the file: backdoorbench (and its forks), an attack_result.pt."""
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The file."""
    out: Path
    """Directory of the bundle."""
    arch: str | None = None
    """Network, if the file's name for it is unknown here: excise:NAME, torchvision:NAME, timm:NAME,
    or package.module:factory (which runs that package's code)."""
    classes: str | None = None
    """Names of the outputs in their order: a,b,c, or a data set that has them, such as gtsrb.
    Default: those of CIFAR-10, else numbers."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the network was trained with, on [0, 1]; default: as the other
    project has it for the data set."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel likewise."""
    image_size: int | None = None
    """Height and width of the network's images; default: what the file says."""
    data_root: Path | None = None
    """Where cifar10 and gtsrb lie, for --classes; default $EXCISE_DATA."""
    max_bytes: int = MAX_BYTES
    """Refuse a larger file, or one that unpacks to more."""
    overwrite: bool = False
    """Replace the output directory if it exists."""
    json: bool = False
    """Print the card as JSON."""


def run(arguments: list[str]) -> int:
    """Import a network and print what came over and what did not."""
    asked = flags(
        Import, arguments, "import", source=tyro.MISSING, path=tyro.MISSING, out=tyro.MISSING
    )
    check_free(asked.out, asked.overwrite, inputs=(asked.path,))
    card = import_backdoorbench(
        asked.path,
        asked.out,
        arch=asked.arch,
        classes=_classes(asked.classes, asked.data_root),
        mean=asked.mean,
        std=asked.std,
        image_size=asked.image_size,
        max_bytes=asked.max_bytes,
    )
    if asked.json:
        print_json(card)
        return 0
    print("taken over:")
    for line in card["imported"]["taken"]:
        print(f"  {line}")
    print("not taken over:")
    for name, why in card["imported"]["left"].items():
        print(f"  {name}: {why}")
    print(f"bundle: {asked.out}")
    return 0


def _classes(said: str | None, root: Path | None) -> tuple[str, ...] | None:
    if said is None:
        return None
    if "," in said:
        return tuple(said.split(","))
    return tuple(list_source(said, root).train.classes)
