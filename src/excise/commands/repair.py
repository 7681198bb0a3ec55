"""``excise repair``: cut the backdoor out of a network with a few clean images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from excise.commands.defender import opened, planted_asr
from excise.commands.options import (
    Given,
    backdoor_of,
    command_line,
    device_named,
    flags,
    preset,
    print_json,
    said,
)
from excise.commands.outputs import check_free
from excise.console import Story
from excise.data import Undecoded, can_hold_back, evenly, split_defender
from excise.errors import SpecError
from excise.evaluation import Limits
from excise.experiments.repair import Question, model_spec, run_repair, write_outcome
from excise.models import Network, load_model
from excise.registry import build, find, parse
from excise.reports import terminal_table
from excise.seeding import Rng
from excise.types import Images, LabelledImages

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Cut the backdoor out of a network with a few clean images.

    Writes the repaired bundle, a record and a report page. The given network stays as it is.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A bundle's directory, or a weights file (safetensors, or a PyTorch file without code)."""
    images: str
    """Clean images with true labels: a folder with one subfolder per class, or a data set: digits,
    cifar10, gtsrb, parquet:DIR, torchvision:NAME, hub:OWNER/NAME."""
    trigger: str | None = None
    """The trigger, to measure attack success (and for `--inverter oracle`, which is told it): a
    victim's directory, or in words: badnets,size=3,row=-3,column=-3,target=0"""
    spc: int | None = None
    """Samples per class, validation included; default: all the images."""
    test: str | None = None
    """Images the repair never sees; default: the test part of --images, else what --spc leaves."""
    test_images: int | None = None
    """At most so many of them, evenly chosen; default: all."""
    out: Path = Path("repaired")
    """Directory of the repaired bundle, the record and the page."""
    twin: Path | None = None
    """Bundle of the clean twin, whose figures are the floor."""
    method: str = "soft-prune"
    """Name of the defense (`excise list defenses`). Its own options are below."""
    preset: str = "published"
    """Named settings of the defense; its own options stand above them."""
    inverter: str = "combined"
    """How the trigger is found, for a defense that uses one (`excise list inverters`), with its
    settings if need be: combined,least=0. oracle: it is told by --trigger, as the paper's
    grad-prune is unless another is named."""
    validation_ratio: float = 0.1
    """Share of the images held out to decide by."""
    paper_split: bool = False
    """Take the paper's one extra image per class where the share rounds to none."""
    seed: int = 0
    """Stands for everything drawn; the same seed gives the same result."""
    curve_images: int = 1000
    """Test images on which the pruning curve is replayed afterwards; 0: no curve."""
    audit: bool = False
    """Attack the repaired network afterwards: invert again, re-activate, relearn. Takes as long as
    two searches for a trigger; status 1 if an attack succeeds."""
    device: str = "auto"
    """Where to work: auto, cpu, cuda, cuda:1."""
    overwrite: bool = False
    """Replace the output directory if it exists."""
    json: bool = False
    """Print the record as JSON."""
    options: Annotated[Any, tyro.conf.arg(name="")] = field(default=None)
    given: Annotated[Given, tyro.conf.arg(name="")] = field(default_factory=Given)
    limits: Limits = field(default_factory=Limits)


def run(arguments: list[str]) -> int:
    """Repair a network; 1 if the repair is incomplete, did harm, or nothing can be said of it."""
    method = said(arguments, "--method", "soft-prune")
    inverter = said(arguments, "--inverter", _usual_inverter(method))
    named = said(arguments, "--preset", "published")
    fields = dict(preset("defense", method, named))
    if _takes_inverter(method):
        fields["inverter"] = _inverter(inverter, None)
    elif said(arguments, "--inverter", None) is not None:
        raise SpecError(
            "--inverter for a defense that uses triggers",
            got=f"--method {method}, which uses none",
            remedy="Leave --inverter out.",
        )
    asked = flags(
        Repair,
        arguments,
        "repair",
        model=tyro.MISSING,
        images=tyro.MISSING,
        method=method,
        preset=named,
        inverter=inverter,
        options=build("defense", method, fields),
    )
    if asked.test_images is not None and asked.test_images < 1:
        raise SpecError(
            "--test-images of at least 1",
            got=str(asked.test_images),
            remedy="Leave it out for all.",
        )
    inputs = (asked.model, asked.images, asked.test, asked.trigger, asked.twin)
    check_free(asked.out, asked.overwrite, inputs=(*inputs, asked.given.class_map))
    device = device_named(asked.device)
    with Story() as story:
        story.stage(f"reading {asked.model} and {asked.images}")
        question, card = _question(asked, device, story)
        outcome = run_repair(
            question,
            command=command_line("repair", arguments),
            on_round=story.round,
            on_stage=story.stage,
        )
        page = write_outcome(asked.out, outcome, _origin(asked.model, card))
    if asked.json:
        print_json(outcome.record)
    else:
        console = Console(highlight=False)
        console.print(terminal_table(outcome.record))
        console.print(outcome.record["verdict"]["sentence"], markup=False)
        for note in outcome.record["notes"]:
            console.print(note, markup=False)
        for finding in outcome.record["checks"]:
            console.print(f"{finding['level']}: {finding['message']}", markup=False)
        for finding in outcome.record.get("audit", {}).get("findings", []):
            word = {True: "withstood", False: "not withstood", None: "cannot be told"}
            console.print(
                f"audit, {finding['name']}: {word[finding['passed']]}. {finding['sentence']}",
                markup=False,
            )
        print(f"page: {page}")
    return 0 if outcome.record["verdict"]["ok"] else 1


def _question(
    asked: Repair, device: torch.device, story: Story
) -> tuple[Question, Mapping[str, Any]]:
    """Return what is to be done, and the card of the given network."""
    network, card, mine, pool = opened(asked.given, asked.model, asked.images, device, story)
    backdoor = backdoor_of(asked.trigger, network) if asked.trigger else None
    takes_inverter = _takes_inverter(asked.method)
    if backdoor is None and takes_inverter and asked.inverter == "oracle":
        raise SpecError(
            "--trigger, which --inverter oracle is told",
            got="none",
            remedy="Give the victim's directory, or the trigger in words: "
            "--trigger badnets,size=3,row=-3,column=-3,target=0",
        )
    split = split_defender(
        mine,
        spc=asked.spc,
        rng=Rng(asked.seed).child("sample"),
        validation_ratio=asked.validation_ratio,
        paper_split=asked.paper_split,
        pool=pool,
        # With one image a class there is none to decide by; who needs some says so.
        needs_validation=can_hold_back(mine, asked.spc, paper_split=asked.paper_split),
    )
    if asked.audit:
        split.data.held_out("--audit")
    trigger = backdoor.trigger if backdoor else None
    method = asked.options
    if takes_inverter and asked.inverter == "oracle":
        method = dataclasses.replace(method, inverter=_inverter(asked.inverter, trigger))
    question = Question(
        model=network,
        method=method,
        data=split.data.to(device),
        seed=asked.seed,
        test=_test_images(asked, network, split.left),
        backdoor=backdoor,
        twin=load_model(asked.twin).to(device) if asked.twin else None,
        limits=asked.limits,
        planted_asr=planted_asr(card),
        described={
            "spc": asked.spc,
            "source": asked.images,
            "model": model_spec(network, card),
        },
        curve_images=asked.curve_images,
        audited=asked.audit,
    )
    return question, card


def _test_images(asked: Repair, network: Network, left: Undecoded | None) -> LabelledImages | None:
    """Return the test images asked for, or the source's own, or what the sample leaves."""
    source = asked.test or asked.images
    part = asked.given.measured_split(source)
    if asked.test is not None or part == "test":
        left, _ = asked.given.listed(network, source, part)
    return evenly(left, asked.test_images).load() if left is not None else None


def _usual_inverter(method: str) -> str:
    """Return how a method's trigger is found where nobody says how: Grad-Prune's paper is told."""
    return "oracle" if method == "grad-prune" else "combined"


def _takes_inverter(method: str) -> bool:
    fields = dataclasses.fields(find("defense", method).load())
    return any(f.name == "inverter" for f in fields)


def _inverter(name: str, trigger: Any) -> Any:
    if name == "oracle":
        return build("inverter", name, {"trigger": trigger or _untold})
    return build("inverter", *parse(name))


def _untold(images: Images) -> Images:
    """Stand for the trigger while help is printed, before one is told."""
    return images


def _origin(model: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the repaired network's card says of where it comes from."""
    # The name alone: a path says where somebody works.
    origin: dict[str, Any] = {"repaired_from": Path(model).name}
    # Who repairs it again has to be kept from the images that it was trained on, too.
    return origin | ({"made": card["made"]} if card.get("made") else {})
