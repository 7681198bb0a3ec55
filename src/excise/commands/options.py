"""What several commands share: flags made from a method's fields, words made into objects."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import tyro
from pydantic import ValidationError

from excise.attacks import Drawn, load_backdoor
from excise.data import Undecoded, describe_classes, has_test, list_images
from excise.errors import DataError, SpecError, nearest
from excise.models import Network, load_model, read_card
from excise.models.weights import MAX_BYTES
from excise.registry import build, find, parse, spec_error
from excise.seeding import Rng
from excise.types import Backdoor, LabelledImages

__all__ = [
    "Given",
    "backdoor_of",
    "command_line",
    "device_named",
    "flags",
    "preset",
    "print_json",
    "said",
]

T = TypeVar("T")


def said(arguments: Sequence[str], flag: str, default: T) -> str | T:
    """Return the value of ``flag`` before the real parse, since it decides what flags there are.

    As the parser does it takes ``_`` for ``-``, and the last where a flag is repeated.
    """
    found: str | T = default
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if equals:
            found = value
        elif i + 1 < len(arguments):
            found = arguments[i + 1]
    return found


def flags(command: type[T], arguments: Sequence[str], name: str, **defaults: Any) -> T:
    """Parse ``arguments`` into ``command``; a method among its defaults lends its fields as flags.

    Exits with status 2 and the nearest flag where one is unknown.

    Raises:
        SpecError: a value out of range.
    """
    try:
        parsed: T = tyro.cli(
            command,
            args=list(arguments),
            prog=f"excise {name}",
            default=command(**defaults),
            config=(tyro.conf.SuppressFixed,),
        )
    except ValidationError as error:
        raise spec_error(error.title, error) from error
    return parsed


def device_named(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        SpecError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Not empty: "meta" has no numbers, and some devices are found missing only when used.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(
            "auto, cpu, or a device this machine has",
            got=repr(name),
            remedy="Leave --device out to use what there is.",
        ) from error
    return device


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return how to run the command again."""
    return shlex.join(["excise", name, *arguments])


@dataclass(frozen=True, kw_only=True)
class Given:
    """A network and images as a stranger has them; a bundle needs none of this but the roots."""

    arch: str | None = None
    """Network of a weights file: excise:NAME, torchvision:NAME, timm:NAME, or
    package.module:factory (which runs that package's code)."""
    classes: str | None = None
    """Classes of a weights file: their number, or names in the order of the outputs, a,b,c."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel that the network was trained with, on [0, 1]."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel likewise."""
    image_size: int | None = None
    """Height and width of the network's images; default: the architecture's usual."""
    channels: int | None = None
    """Channels of the network's images: 3 color, 1 gray."""
    class_map: Path | None = None
    """JSON file: folder names in the order of the network's outputs, or {folder: output}."""
    data_root: Path | None = None
    """Where cifar10 and gtsrb lie, or torchvision downloads to; default $EXCISE_DATA."""
    max_bytes: int = MAX_BYTES
    """Largest weights file in bytes, and the most that it may unpack to."""
    skip_unreadable: bool = False
    """Leave damaged pictures out, with a warning, instead of stopping."""

    def network(self, model: str) -> Network:
        """Load a bundle, or a weights file whose network is described by the fields."""
        classes: int | tuple[str, ...] | None = None
        if self.classes is not None:
            numbered = self.classes.isdecimal()
            classes = int(self.classes) if numbered else tuple(self.classes.split(","))
        return load_model(
            Path(model),
            arch=self.arch,
            classes=classes,
            mean=self.mean,
            std=self.std,
            input_size=(self.image_size, self.image_size) if self.image_size is not None else None,
            in_channels=self.channels,
            max_bytes=self.max_bytes,
        )

    def measured_split(self, source: str) -> Literal["train", "test"]:
        """Return which part of a source is measured on: its test part, where it has one."""
        return "test" if has_test(source, self.data_root) else "train"

    def images(
        self, network: Network, source: str, split: Literal["train", "test"] = "train"
    ) -> tuple[LabelledImages, str]:
        """Load images as the network takes them; return them and how classes meet outputs.

        Raises:
            DataError: the classes do not match the outputs.
        """
        listed, order = self.listed(network, source, split)
        return listed.load(), order

    def listed(
        self, network: Network, source: str, split: Literal["train", "test"] = "train"
    ) -> tuple[Undecoded, str]:
        """List images, to be read as the network takes them, and say how classes meet outputs.

        The order of classes comes from ``class_map``, else from the network's own class names,
        else from the sorted names of the folders, which the returned sentence states. A network
        without names of its own has these from then on: for other images, and where it is written.

        Raises:
            DataError: the classes do not match the outputs.
        """
        channels, height, width = network.input_shape
        names = self.class_map or (network.classes if network.named else None)
        images = list_images(
            source,
            classes=names,
            size=(height, width),
            channels=1 if channels == 1 else 3,
            split=split,
            root=self.data_root,
            skip_unreadable=self.skip_unreadable,
        )
        if len(images.classes) != len(network.classes):
            raise DataError(
                f"images of {len(network.classes)} classes, like the network's outputs",
                got=f"{len(images.classes)} classes in {source}",
                remedy="Give --class-map FILE.json: folder names in the order of the outputs, or "
                "{folder: output}.",
            )
        network.name_outputs(images.classes)
        return images, describe_classes(images, given=names is not None)


def backdoor_of(word: str, network: Network) -> Backdoor:
    """Return the backdoor a person describes: a victim's bundle, or ``badnets,size=3,row=…``.

    Raises:
        SpecError: an attack of which a part is left open, drawn or learned, or that is none.
    """
    if Path(word).is_dir():
        return load_backdoor(Path(word), read_card(Path(word)))
    name, fields = parse(word)
    attack = build("attack", name, fields)
    if not isinstance(attack, Drawn) or attack.DRAWN is None:
        raise SpecError(
            "an attack whose trigger can be said in words",
            got=repr(word),
            remedy="Give the directory of a victim, which holds its trigger, or try badnets.",
        )
    drawn = [key for key in attack.DRAWN if key not in fields]
    if drawn:
        raise SpecError(
            f"every part of the trigger, also {', '.join(drawn)}",
            got=repr(word),
            remedy="Give a victim's directory, or for example "
            "badnets,size=3,row=-3,column=-3,target=0",
        )
    backdoor: Backdoor = attack.backdoor(network.input_shape, len(network.classes), Rng(0))
    return backdoor


def preset(kind: Any, name: str, which: str) -> Mapping[str, Any]:
    """Return a method's named set of values.

    Raises:
        SpecError: it has no such preset.
    """
    presets = find(kind, name).presets()
    if which not in presets:
        raise SpecError(f"a preset of {name}", got=repr(which), remedy=nearest(which, presets))
    return presets[which]


def print_json(value: Any) -> None:
    """Print a value for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
