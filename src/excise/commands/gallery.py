"""``excise gallery``: victims side by side on one page, the same images under every attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from excise.attacks import load_victim
from excise.commands.options import Given, command_line, device_named, flags
from excise.commands.outputs import check_free
from excise.console import Story
from excise.errors import DataError, SpecError
from excise.experiments.gallery import Exhibit, gallery
from excise.files import write_text
from excise.models import Network
from excise.models.bundles import CARD
from excise.reports import render_gallery

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Show victims side by side: the same images clean, triggered, what changed, and spectra.

    Writes one page that needs no network. Attacks of which no victim is given are listed as not
    run. Every victim must take images of the same size and classes.
    """

    victims: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VICTIM")]
    """Bundles of victims; of a directory that holds bundles, those with a trigger that fit."""
    images: str
    """Clean images: a data set, whose test part is used, or a folder with one subfolder per
    class."""
    out: Path
    """The page to write, ending in .html."""
    data_root: Path | None = None
    """Where cifar10 and gtsrb lie, or torchvision downloads to; default $EXCISE_DATA."""
    shown: int = 4
    """How many images to show, each of another class; 1 to 8."""
    spectrum_images: int = 1000
    """How many images the spectra are averaged over."""
    seed: int = 0
    """Draws which images are shown."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    overwrite: bool = False
    """Replace the page if it exists."""


def run(arguments: list[str]) -> int:
    """Write the page and print its path."""
    asked = flags(Gallery, arguments, "gallery",
                  victims=tyro.MISSING, images=tyro.MISSING, out=tyro.MISSING)  # fmt: skip
    _check(asked)
    device = device_named(asked.device)
    with Story() as story:
        exhibits, left_out = _exhibits(asked)
        for name, why in left_out:
            story.stage(f"left out {name}: {why}")
        for exhibit in exhibits:
            exhibit.victim.model.to(device)
        given = Given(data_root=asked.data_root)
        split = given.measured_split(asked.images)
        first = exhibits[0].victim.model
        assert isinstance(first, Network)
        test, order = given.images(first, asked.images, split)
        story.stage(order)
        many = "1 victim" if len(exhibits) == 1 else f"{len(exhibits)} victims"
        story.stage(f"{many} on {asked.images}")
        record, pictures = gallery(
            exhibits,
            test,
            f"{asked.images}, {split} images",
            seed=asked.seed,
            shown=asked.shown,
            spectrum_images=asked.spectrum_images,
            left_out=left_out,
        )
        record["command"] = command_line("gallery", arguments)
        write_text(asked.out, render_gallery(record, pictures))
    print(f"page: {asked.out}")
    return 0


def _check(asked: Gallery) -> None:
    """Refuse, before any work, what cannot become a page."""
    if asked.out.suffix.lower() not in (".html", ".htm"):
        raise DataError(
            "a page's name that ends in .html",
            got=str(asked.out),
            remedy="Write for example: --out gallery.html",
        )
    check_free(asked.out, asked.overwrite, "file")
    if asked.out.is_dir():
        raise DataError(
            "a file to write to", got=f"the directory {asked.out}", remedy="Choose another --out."
        )
    for flag, value, most in (("shown", asked.shown, 8), ("spectrum-images",
                              asked.spectrum_images, 1_000_000)):  # fmt: skip
        if not 1 <= value <= most:
            raise SpecError(
                f"--{flag} from 1 to {most:,}", got=str(value), remedy="Leave it out for the usual."
            )


def _exhibits(asked: Gallery) -> tuple[list[Exhibit], list[tuple[str, str]]]:
    """Return the victims to show, and name and reason of those in directories that do not fit."""
    named = [path for path in asked.victims if (path / CARD).is_file()]
    inside = [bundle for path in asked.victims if path not in named for bundle in _bundles(path)]
    shown = [_load(path) for path in _once(named)]
    for exhibit in shown:
        if exhibit.victim.backdoor is None:
            raise DataError(
                "victims, networks with a trigger",
                got=f"{exhibit.name}, a clean network",
                remedy="Leave it out; `excise plant --attack NAME` makes a victim.",
            )
    others = [_load(path) for path in _once(inside, named)]
    others = [exhibit for exhibit in others if exhibit.victim.backdoor is not None]
    # Of several data sets in one directory, the one the images are of.
    others.sort(key=lambda e: _source(e) != asked.images)
    if not shown and not others:
        raise DataError(
            "at least one victim, a bundle with a trigger",
            got="none" if not asked.victims else ", ".join(map(str, asked.victims)),
            remedy="Give bundles of `excise plant`, or a directory that holds some.",
        )
    like = (shown or others)[0]
    for exhibit in shown:
        if why := _unlike(exhibit, like):
            raise DataError(
                f"victims of one kind of images, like {like.name}",
                got=f"{exhibit.name}: {why}",
                remedy="Make one gallery for each data set.",
            )
    reasons = [(exhibit, _unlike(exhibit, like)) for exhibit in others]
    shown += [exhibit for exhibit, why in reasons if not why]
    return shown, [(exhibit.name, why) for exhibit, why in reasons if why]


def _bundles(path: Path) -> list[Path]:
    """Return the bundles a directory holds."""
    if not path.is_dir():
        raise DataError(
            "a victim's bundle, or a directory of bundles",
            got=f"{path}, {'a file' if path.exists() else 'which does not exist'}",
            remedy="Give what `excise plant --out` wrote.",
        )
    return sorted(child for child in path.iterdir() if (child / CARD).is_file())


def _once(paths: Sequence[Path], without: Sequence[Path] = ()) -> list[Path]:
    """Return each path once, and none of ``without``."""
    named = {path.resolve(): path for path in reversed(paths)}
    taken = {path.resolve() for path in without}
    return [path for real, path in reversed(named.items()) if real not in taken]


def _load(path: Path) -> Exhibit:
    victim, card = load_victim(path)
    return Exhibit(path.resolve().name, victim, card)


def _source(exhibit: Exhibit) -> object:
    made = exhibit.card.get("made")
    data = made.get("data") if isinstance(made, dict) else None
    return data.get("source") if isinstance(data, dict) else None


def _unlike(exhibit: Exhibit, like: Exhibit) -> str:
    """Return in words how a victim's images differ from another's; empty if they do not."""
    one, other = exhibit.victim.model, like.victim.model
    assert isinstance(one, Network)
    assert isinstance(other, Network)
    if one.input_shape != other.input_shape:
        shapes = " and not ".join("×".join(map(str, m.input_shape)) for m in (one, other))
        return f"images of {shapes}"
    if one.classes != other.classes:
        return f"{len(one.classes)} classes that are not the other's {len(other.classes)}"
    return ""
