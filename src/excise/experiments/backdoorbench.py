"""Turn a peer's ``attack_result.pt`` (BackdoorBench and its forks) into a bundle.

The file is a dict that ``torch.save`` wrote: ``model_name``, ``num_classes``, ``model`` (a state
dict), ``data_path``, ``img_size`` (height, width, channels), ``clean_data`` (the data set's name),
and ``bd_train``, ``bd_test`` and others: which images were poisoned, where their pictures lie and
how they were relabeled. The network, the positions of the poisoned images and the target are taken
over. The trigger is in none of these files, and neither are, mostly, the triggered pictures: they
lie beside it.

It is read by :mod:`excise.models.inert`: nothing it holds is imported, called or made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excise.attacks import Victim, save_victim
from excise.errors import ModelError, nearest
from excise.models import Network, check_model, read_card
from excise.models.inert import Archive
from excise.models.matching import assemble
from excise.models.pickled import Name, Stored, Thing, array_of
from excise.models.weights import MAX_BYTES, named_tensors

__all__ = ["import_backdoorbench"]

#: The peer's names of networks, and what builds the same here. All but the first are torchvision's
#: own there too, with ``num_classes`` outputs.
ARCHS = {"preactresnet18": "excise:preactresnet18"} | {
    name: f"torchvision:{name}"
    for name in (
        "alexnet", "convnext_tiny", "densenet121", "densenet161", "efficientnet_b0",
        "efficientnet_b3", "googlenet", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
        "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0",
        "squeezenet1_0", "vgg11", "vgg16", "vgg19", "vgg19_bn", "vit_b_16", "vit_b_32",
        "vit_l_16", "vit_l_32", "wide_resnet50_2",
    )
}  # fmt: skip

#: The peer's normalization by name of the data set: mean and std, on [0, 1].
NORMALIZATION: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.5,), (0.5,)),
    "gtsrb": ((0.0,), (1.0,)),
    "celeba": ((0.0,), (1.0,)),
}

_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_VIT_SIZE = 224
_SAVED = "Give the attack_result.pt that the benchmark wrote, with the state dict under 'model'."
_UNUSED = {
    "data_path": "names a folder of the machine it was made on",
    "clean_data": "only its name, which decided the normalization",
}


def import_backdoorbench(
    path: Path,
    out: Path,
    *,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Write the bundle of the network in ``path`` and return its card.

    What was taken over, and what was left and why, stands in the card under ``imported``.

    Args:
        path: an ``attack_result.pt``.
        out: the bundle's directory; replaced if it exists.
        arch: the network, where the file's own name for it is none that is known here.
        classes: a name for every output; by default those of CIFAR-10, else numbers.
        mean: one number a channel, where the data set is none whose normalization is known.
        std: likewise.
        image_size: height and width of the images, where the file does not say.
        max_bytes: the largest file, and the most that it may unpack to.

    Raises:
        ModelError: no such file; no state dict in it; a network that is not known or does not
            fit; an unknown normalization.
        UnsafeFileError: a file that is or becomes larger than allowed.
    """
    with Archive(path, max_bytes=max_bytes) as archive:
        content = archive.content()
        if not isinstance(content, dict):
            raise ModelError(f"a dict in {path}", got=_kind(content), remedy=_SAVED)
        state = _state(content.get("model"), archive)
    said = _arch(content.get("model_name"), arch)
    state, resized = _unwrap(state, said)
    size = _whole_numbers(content.get("img_size"))
    network = assemble(
        state,
        arch=said,
        trusted=arch is not None,
        classes=_classes(content, classes),
        in_channels=size[2] if len(size) == 3 else 3,
        input_size=(_VIT_SIZE, _VIT_SIZE) if resized else _input_size(size, image_size),
        **_normalization(content.get("clean_data"), mean, std),
    )
    check_model(network, network.input_shape, len(network.classes))
    left = dict(_left(content, size, resized))
    poison, why = _poison(content.get("bd_train"))
    if why:
        left["bd_train"] = why
    card = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "imported": {
            "from": "backdoorbench",
            "file": path.name,
            "sha256": _sha256(path),
            "model_name": _text(content.get("model_name")),
            "clean_data": _text(content.get("clean_data")),
            "img_size": size,
            "trigger": "not in the file",
            "rule": (rule := _rule(content.get("bd_test"), len(network.classes))),
            "taken": _taken(network, poison, rule),
            "left": left,
        },
    }
    index = None if poison is None else torch.from_numpy(poison)
    save_victim(out, Victim(network, None, index), card)
    return read_card(out)


# The network


def _state(model: object, archive: Archive) -> dict[str, Tensor]:
    if not isinstance(model, dict) or not model:
        raise ModelError(
            f"a state dict under 'model' in {archive.path}",
            got=_kind(model) if model != {} else "an empty one",
            remedy=_SAVED if model is None else "Save model.state_dict() there, not the model.",
        )
    found = {}
    for name, value in model.items():
        if not (isinstance(name, str) and isinstance(value, Stored)):
            raise ModelError(
                f"plain tensors by name under 'model' in {archive.path}",
                got=f"{_text(name) or _kind(name)}: {_kind(value)}",
                remedy="Save model.state_dict() there, as floats on a processor.",
            )
        found[name] = archive.tensor(value)
    return named_tensors(found, archive.path, archive.max_bytes)


def _arch(name: object, given: str | None) -> str:
    if given is not None:
        return given
    if isinstance(name, str) and name in ARCHS:
        return ARCHS[name]
    near = nearest(name, ARCHS) if isinstance(name, str) else ""
    raise ModelError(
        "a model_name that is known here",
        got=_kind(name) if not isinstance(name, str) else repr(name[:80]),
        remedy=f"Name the network that fits: --arch excise:preactresnet18. {near}".strip(),
    )


def _unwrap(state: dict[str, Tensor], arch: str) -> tuple[dict[str, Tensor], bool]:
    """Return the state dict without wrappers, and whether the network resizes its images itself.

    The peer's vision transformers are two modules in a row: one that resizes to 224 × 224, which
    has no weights, and the transformer.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if arch.startswith("torchvision:vit_") and all(name.startswith("1.") for name in state):
        return {name.removeprefix("1."): tensor for name, tensor in state.items()}, True
    return state, False


def _classes(content: Mapping[Any, Any], given: Sequence[str] | None) -> int | Sequence[str] | None:
    count = content.get("num_classes")
    known = type(count) is int and 0 < count <= 100_000
    if given is not None:
        if known and len(given) != count:
            raise ModelError(
                f"{count} class names, one an output",
                got=f"{len(given)}",
                remedy="Name every output, in order.",
            )
        return given
    if content.get("clean_data") == "cifar10" and count in (10, None):
        return _CIFAR10
    return count if known else None


def _input_size(size: Sequence[int], given: int | None) -> tuple[int, int]:
    if given is not None:
        return given, given
    if len(size) >= 2 and min(size[:2]) > 0 and max(size[:2]) <= 4096:
        return size[0], size[1]
    raise ModelError(
        "an img_size of height, width and channels in the file",
        got=str(list(size)) if size else "none",
        remedy="Say what the network was trained on: --image-size 32.",
    )


def _normalization(
    data: object, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Sequence[float]]:
    known = NORMALIZATION.get(data) if isinstance(data, str) else None
    if known is None and (mean is None or std is None):
        raise ModelError(
            "a clean_data whose normalization is known",
            got=repr(data[:80]) if isinstance(data, str) else _kind(data),
            remedy="Say what the network was trained with: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5, "
            f"or --mean 0 --std 1 for none. Known: {', '.join(NORMALIZATION)}.",
        )
    usual_mean, usual_std = known or ((), ())
    return {
        "mean": usual_mean if mean is None else mean,
        "std": usual_std if std is None else std,
    }


# What was done to the images


def _poison(train: object) -> tuple[np.ndarray[Any, Any] | None, str | None]:
    """Return the positions of the poisoned training images, and why there are none."""
    if train is None:
        return None, "empty: this attack triggers images while it trains, or did not keep them"
    if not isinstance(train, dict):
        return None, f"{_kind(train)}, which is not made"
    if "poison_indicator" in train:
        marks = _numbers(train["poison_indicator"])
        if marks is None or marks.ndim != 1:
            return None, f"poison_indicator is {_kind(train['poison_indicator'])}"
        index = np.flatnonzero(marks == 1)
        kept = _numbers(train.get("original_index_array"))
        if kept is not None:
            index = np.intersect1d(index, kept)
    else:  # the benchmark's first version
        found = _numbers(train.get("original_index"))
        if found is None or found.ndim != 1 or (len(found) and found.min() < 0):
            return None, "it does not say which images"
        index = np.sort(found)
    return index.astype(np.int64), None


def _rule(test: object, num_classes: int) -> dict[str, Any] | None:
    """Return the target rule that all the triggered test images follow, if there is one."""
    pairs = set(_relabeled(test))
    targets = {label for label, _ in pairs}
    if len(targets) == 1 and (target := targets.pop()) < num_classes:
        return {"name": "all-to-one", "target": target}
    if pairs and all(label == (true + 1) % num_classes for label, true in pairs):
        return {"name": "all-to-all", "num_classes": num_classes}
    return None


def _relabeled(test: object) -> Iterable[tuple[int, int]]:
    """Yield the attacker's and the true label of every triggered image that has both."""
    container = test.get("bd_data_container") if isinstance(test, dict) else None
    entries = container.get("data_dict") if isinstance(container, dict) else None
    for entry in entries.values() if isinstance(entries, dict) else ():
        # Either a picture's path and the labels, or the picture itself and the labels.
        labels = entry.get("other_info") if isinstance(entry, dict) else entry
        match labels:
            case [*_, int() as label, int() as true] if min(label, true) >= 0:
                yield label, true


# What is said about it


def _taken(
    network: Network, poison: np.ndarray[Any, Any] | None, rule: Mapping[str, Any] | None
) -> list[str]:
    size = "×".join(map(str, network.input_shape[1:]))
    numbers = sum(parameter.numel() for parameter in network.parameters())
    taken = [
        f"network: {network.arch}, {len(network.classes)} classes, images of {size}, "
        f"{numbers:,} parameters",
        f"normalization: mean {network.mean}, std {network.std}",
    ]
    if poison is not None:
        taken.append(f"positions of {len(poison):,} poisoned training images: poison.safetensors")
    if rule is not None:
        detail = f", target {rule['target']}" if "target" in rule else ""
        taken.append(f"target rule, from the labels of triggered images: {rule['name']}{detail}")
    return taken


def _left(
    content: Mapping[Any, Any], size: Sequence[int], resized: bool
) -> Iterable[tuple[str, str]]:
    yield "trigger", "the file does not hold it; only the attack's own code makes it"
    if resized:
        was = "×".join(map(str, size[:2])) or "smaller"
        yield (
            "resizing",
            (
                f"the peer's network takes {was} images and scales them up itself; here they are "
                f"scaled to {_VIT_SIZE}×{_VIT_SIZE} when they are read, which is not quite the same"
            ),
        )
    for key, value in islice(content.items(), 100):
        name = _text(key) or _kind(key)
        if key in ("model", "model_name", "num_classes", "img_size", "bd_train") or value is None:
            continue
        if isinstance(value, dict) and isinstance(key, str) and key != "model":
            yield name, _pictures(value)
        else:
            yield name, _UNUSED.get(name, f"{_kind(value)}, which has no use here")


def _pictures(value: Mapping[Any, Any]) -> str:
    container = value.get("bd_data_container")
    entries = container.get("data_dict") if isinstance(container, dict) else None
    if not isinstance(entries, dict):
        return "a dict, which has no use here"
    if entries and all(isinstance(entry, dict) for entry in entries.values()):
        return f"{len(entries):,} triggered images: paths of pictures that lie beside the file"
    return f"{len(entries):,} triggered images, kept as Python objects, which are not made"


def _kind(value: object) -> str:
    """Return what something is, in words that a file's author cannot abuse."""
    if isinstance(value, Name | Thing):
        return f"an object of {_text(str(value))}"
    if array_of(value) is not None:
        return "an array"
    return {Stored: "a tensor", type(None): "nothing"}.get(type(value), f"a {type(value).__name__}")


def _text(value: object) -> str | None:
    """Return a text as one that can be printed and written, at most 80 characters long."""
    if not isinstance(value, str):
        return None
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value[:80])


def _numbers(value: object) -> np.ndarray[Any, Any] | None:
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        try:
            return np.asarray(value, dtype=np.float64)
        except OverflowError:
            return None
    return array_of(value)


def _whole_numbers(value: object) -> list[int]:
    found = _numbers(list(value) if isinstance(value, tuple) else value)
    if found is None or found.ndim != 1 or len(found) > 3 or not np.isfinite(found).all():
        return []
    return [int(number) for number in found]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
