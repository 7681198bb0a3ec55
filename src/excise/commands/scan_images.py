"""``excise scan-images``: which pictures look as if they carried a trigger, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from excise.commands.options import (
    command_line,
    device_named,
    flags,
    preset,
    print_json,
    said,
)
from excise.commands.outputs import check_free
from excise.console import Story
from excise.data import Pictures, has_test, load_images, read_folder
from excise.data.listing import expanded
from excise.detection import load_scorer
from excise.errors import DataError, SpecError
from excise.experiments.scan_images import Fitted, Scan, run_scan, write_scan
from excise.registry import build, rows
from excise.reports.formats import clean as printable

__all__ = ["run"]

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ScanImages:
    """Tell which pictures look as if they carried a trigger, by their spectra.

    A detector learns from clean pictures alone, with artifacts made by itself; it needs no network
    and no trigger. Some clean pictures are held back to measure false alarms. Writes a record, a
    page that shows what was flagged and why, and the fitted detector. Smooth triggers and warps are
    missed.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Pictures to judge: a folder, flat or with subfolders, or a data set (its test part): digits,
    cifar10, gtsrb, parquet:DIR, torchvision:NAME, hub:OWNER/NAME."""
    clean: str
    """Pictures known to be clean, of the same origin and size: a folder, or a data set (its
    training part)."""
    out: Path
    """Directory of the record, the page and the fitted detector."""
    preset: str = "published"
    """Detector's settings: published (50,000 + 50,000 images, 50 epochs), or fast (10,000 + 10,000
    images, 5 epochs: minutes on one core at 32 × 32)."""
    detector: Path | None = None
    """A detector fitted before: the directory `detector` of an earlier --out. Nothing is learned
    then; with the same --clean and --seed, the same pictures are held back."""
    held_back: float = 0.2
    """Share of the clean pictures not learned from, on which false alarms are counted; the page
    says how many were flagged."""
    image_size: int | None = None
    """Height and width to scale all pictures to; default: as they are. Scaling can wash out what
    the detector looks for."""
    data_root: Path | None = None
    """Where cifar10 and gtsrb lie, or torchvision downloads to; default $EXCISE_DATA."""
    seed: int = 0
    """Draws which clean pictures are held back, artifacts, weights and batches."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    overwrite: bool = False
    """Replace the output directory if it exists."""
    json: bool = False
    """Print the record as JSON."""
    method: Annotated[Any, tyro.conf.arg(name="")] = field(default=None)


def run(arguments: list[str]) -> int:
    """Scan and print what was found; 0 if nothing was flagged, 1 if something was."""
    settings = preset("detector", "frequency", said(arguments, "--preset", "published"))
    asked = flags(
        ScanImages,
        arguments,
        "scan-images",
        source=tyro.MISSING,
        clean=tyro.MISSING,
        out=tyro.MISSING,
        method=build("detector", "frequency", settings),
    )
    check_free(asked.out, asked.overwrite, inputs=(asked.source, asked.clean))
    if not 0 < asked.held_back < 1:
        raise SpecError(
            "--held-back between 0 and 1", got=str(asked.held_back), remedy="Use for example 0.2."
        )
    device = device_named(asked.device)
    detector = asked.method
    if asked.detector is not None:
        detector = Fitted(*load_scorer(asked.detector))
    with Story() as story:
        story.stage(f"reading {asked.clean} and {asked.source}")
        clean = _pictures(asked, asked.clean, "train")
        channels: Literal[1, 3] = 1 if clean.images.shape[1] == 1 else 3
        source = _pictures(asked, asked.source, "test", channels)
        for name, pictures in ((asked.source, source), (asked.clean, clean)):
            if count := len(pictures.unreadable):
                listed = printable(", ".join(pictures.unreadable[:5]))
                story.stage(f"cannot read {_files(count)} of {name}: {listed}")
        scan = Scan(
            source=source,
            clean=clean,
            detector=detector,
            seed=asked.seed,
            held_back=asked.held_back,
            device=device,
            described={
                "source": _named(asked.source),
                "clean": _named(asked.clean),
                "image_size": asked.image_size,
            },
            notes=_scaled(asked.image_size),
        )
        scanned = run_scan(
            scan,
            command=command_line("scan-images", arguments),
            on_round=story.round,
            on_stage=story.stage,
        )
        page = write_scan(asked.out, scanned)
    record = scanned.record
    if asked.json:
        print_json(record)
    else:
        _print(record, page)
    return 0 if record["verdict"]["ok"] else 1


def _pictures(
    asked: ScanImages, source: str, split: Literal["train", "test"], channels: Any = None
) -> Pictures:
    """Read a folder, or one part of a data set."""
    named = {row.name.partition(":")[0] for row in rows("data")} - {"DIR"}
    try:
        if source.partition(":")[0] not in named and expanded(source).is_dir():
            return read_folder(source, size=asked.image_size, channels=channels)
        if split == "test" and not has_test(source, asked.data_root):
            split = "train"
        data = load_images(
            source, size=asked.image_size, channels=channels, split=split, root=asked.data_root
        )
    except DataError as error:
        if not error.remedy.startswith("Pass size="):
            raise
        remedy = "Give --image-size N to scale all; scaling can wash out what is looked for."
        raise DataError(error.expected, got=error.got, remedy=remedy) from error
    words = {"train": "training", "test": "test"}[split]
    return Pictures(data.images, tuple(f"{words} image {i}" for i in range(len(data))))


def _named(source: str) -> str:
    """Return a source's name without the path to it, which says where somebody works."""
    where = expanded(source)
    return where.resolve().name if where.is_dir() else source


def _scaled(size: int | None) -> tuple[str, ...]:
    if size is None:
        return ()
    return (
        f"Pictures of another size were scaled to {size} × {size} pixels, which can wash out a "
        "trigger’s traces or make new ones.",
    )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _print(record: dict[str, Any], page: Path) -> None:
    console = Console(highlight=False)
    flagged = sorted(
        (image for image in record["images"] if image["flagged"]), key=lambda i: -i["suspicion"]
    )
    if flagged:
        table = Table("picture", "suspicion")
        for image in flagged[:_SHOWN]:
            table.add_row(Text(printable(image["name"])), f"{image['suspicion']:.3f}")
        console.print(table)
        if len(flagged) > _SHOWN:
            console.print(f"and {len(flagged) - _SHOWN:,} more: see the page or the record")
    console.print(record["verdict"]["sentence"], markup=False)
    for note in record["notes"]:
        console.print(f"note: {note}", markup=False)
    if count := len(record["unreadable"]):
        console.print(f"could not read {_files(count)}; the record names them")
    console.print("Not seen: most smooth triggers (LF), and warps (WaNet).")
    print(f"page: {page}")
