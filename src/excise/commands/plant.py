"""``excise plant``: train a victim, or its clean twin, into a bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from excise.commands.options import device_named, flags, preset, print_json, said
from excise.commands.outputs import check_free
from excise.console import Story
from excise.data import load_data
from excise.errors import SpecError, nearest
from excise.experiments.logging import open_log
from excise.experiments.plant import Planting, plant
from excise.models import load_model
from excise.registry import build
from excise.training import Recipe
from excise.types import Row

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Train a network with a backdoor in it, measure it, and write its bundle.

    An interrupted planting goes on after the last finished epoch when started again.
    """

    attack: str = "badnets"
    """Name of the attack; `none` trains the clean twin. Its own options are below."""
    attack_preset: str = "seeded"
    """seeded: the seed draws target and place; field: the fixed choice of the papers."""
    data: str
    """Images: digits, cifar10, gtsrb, parquet:DIR, torchvision:NAME, hub:OWNER/NAME, or a folder
    with train/ and test/, each with one subfolder per class."""
    data_root: Path | None = None
    """Where cifar10 and gtsrb lie, or torchvision downloads to; default $EXCISE_DATA."""
    image_size: int | None = None
    """Height and width to scale images to; default: as they are."""
    model: str = "excise:preactresnet18"
    """Network: excise:preactresnet18,width=16, torchvision:NAME, timm:NAME, package.module:factory
    (which runs that package's code)."""
    out: Path
    """Directory of the bundle."""
    seed: int = 0
    """Stands for everything drawn: weights, split, target, trigger, poisoned images, batches."""
    victim_images: float = 0.5
    """Share of the training images the victim gets (above 1: their number); the rest is the pool
    a defender draws from."""
    recipe_preset: str = "published"
    """Training recipe: published (the field's 100 epochs), or fast (10 epochs, small machines)."""
    surrogate: Path | None = None
    """Bundle of the attacker's own clean network, for attacks that work on one; default: they
    train it as the clean twin is trained."""
    half: bool = False
    """Store weights in half precision."""
    log: str | None = None
    """Also log the loss of every epoch: tensorboard:DIR or mlflow:URI (docs/sweeps.md)."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1."""
    overwrite: bool = False
    """Replace the output directory if it exists."""
    json: bool = False
    """Print the card as JSON."""
    method: Annotated[Any, tyro.conf.arg(name="")] = field(default=None)
    recipe: Recipe = field(default_factory=Recipe)


def run(arguments: list[str]) -> int:
    """Plant a victim and print what it measured."""
    attack = said(arguments, "--attack", "badnets")
    asked = flags(
        Plant,
        arguments,
        "plant",
        attack=attack,
        data=tyro.MISSING,
        out=tyro.MISSING,
        method=build(
            "attack", attack, preset("attack", attack, said(arguments, "--attack-preset", "seeded"))
        ),
        recipe=Recipe(**_recipe_preset(said(arguments, "--recipe-preset", "published"))),
    )
    check_free(asked.out, asked.overwrite)
    device = device_named(asked.device)
    share = asked.victim_images
    with Story() as story, open_log(asked.log, story.stage) as log:
        story.stage(f"reading {asked.data}")
        data = load_data(asked.data, root=asked.data_root, size=asked.image_size)
        planting = Planting(
            attack=asked.method,
            arch=asked.model,
            recipe=asked.recipe,
            seed=asked.seed,
            victim_images=int(share) if share > 1 else share,
        )
        story.stage(f"planting {asked.attack} in {asked.model}")

        def follow(row: Row) -> None:
            story.round(row)
            log.round(asked.out.name, row)

        card = plant(
            planting,
            data,
            asked.out,
            device=device,
            half=asked.half,
            on_round=follow,
            surrogate=load_model(asked.surrogate).to(device) if asked.surrogate else None,
        )
        log.finished(asked.out.name, card["made"], card)
    if asked.json:
        print_json(card)
        return 0
    for name in ("acc", "asr", "ra"):
        if (rate := card["measured"][name]) is not None:
            low, high = rate["low"], rate["high"]
            print(f"{name.upper():4} {rate['value']:6.1%}  (95 %: {low:.1%} to {high:.1%})")
    print(f"bundle: {asked.out}")
    return 0


def _recipe_preset(name: str) -> dict[str, Any]:
    if name not in Recipe.PRESETS:
        remedy = nearest(name, Recipe.PRESETS)
        raise SpecError("a preset of the recipe", got=repr(name), remedy=remedy)
    return dict(Recipe.PRESETS[name])
