"""The gallery: victims of every attack on the same test images, as a record and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from excise.attacks import Victim
from excise.data import to_png
from excise.evaluation.evaluate import eval_mode
from excise.evaluation.spectrum import mean_magnitude
from excise.models import device_of
from excise.registry import rows
from excise.seeding import Rng
from excise.types import (
    AllToOne,
    Backdoor,
    Images,
    LabelledImages,
    Trigger,
    as_floats,
    round_to_8_bits,
)

__all__ = ["GALLERY_VERSION", "Exhibit", "gallery"]

GALLERY_VERSION = 1
#: What residuals may be enlarged by: steps a caption can name.
_FACTORS = (1, 2, 4, 8, 16, 32)
#: Spectra of larger images are averaged in blocks to this side: a picture shows no more.
_SIDE = 64
_BATCH = 250


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One victim of the gallery.

    Args:
        name: what it is called, its directory's name.
        victim: the network, with its backdoor.
        card: how it was made and what it measured.
    """

    name: str
    victim: Victim
    card: Mapping[str, Any]


def gallery(
    exhibits: Sequence[Exhibit],
    test: LabelledImages,
    source: str,
    *,
    seed: int = 0,
    shown: int = 4,
    spectrum_images: int = 1000,
    left_out: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the gallery as plain JSON, and its PNG files by the names the record calls them.

    Args:
        exhibits: victims whose networks take images of ``test``'s shape and classes.
        test: clean images.
        source: where they come from, in words.
        seed: draws which images are shown and which the spectra are of.
        shown: how many images, each of another class.
        spectrum_images: how many images the spectra are averaged over, at most.
        left_out: name and reason of bundles that are not shown.
    """
    order = torch.randperm(len(test), generator=Rng(seed).child("gallery").torch("images"))
    index = _of_different_classes(test, order, shown)
    clean = round_to_8_bits(as_floats(test.images[index.to(test.device)]))
    labels = [test.classes[k] for k in test.labels[index].tolist()]
    some = test.subset(order[:spectrum_images])
    files = {f"clean/{i}.png": to_png(image) for i, image in enumerate(clean)}
    entries: list[dict[str, Any]] = []
    for exhibit in sorted(exhibits, key=_rank):
        entry, drawn = _exhibit(exhibit, clean, test.subset(index), some, str(len(entries)))
        entries.append(entry)
        files |= drawn
    run = {entry["attack"] for entry in entries}
    record = {
        "version": GALLERY_VERSION,
        "kind": "gallery",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "excise": version("excise"),
        "source": source,
        "seed": seed,
        "images": [{"label": k, "clean": f"clean/{i}.png"} for i, k in enumerate(labels)],
        "spectrum": {"images": len(some), "clean": _spectrum(_clean(some))},
        "entries": entries,
        "not_run": [
            {"attack": row.name, "title": row.title, "paper": row.paper}
            for row in rows("attack")
            if row.name != "none" and row.name not in run
        ],
        "left_out": [{"name": name, "why": why} for name, why in left_out],
    }
    return record, files


def _rank(exhibit: Exhibit) -> tuple[int, str]:
    """Return what orders victims: attacks as in the registry, then names."""
    named = [row.name for row in rows("attack")]
    attack = _attack(exhibit.card)["name"]
    return (named.index(attack) if attack in named else len(named), exhibit.name)


def _attack(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attack's name and settings as a card says them; cards are somebody else's."""
    said = _at(card, "made", "attack")
    attack = dict(said) if isinstance(said, Mapping) else {}
    return attack | {"name": str(attack.get("name", "unknown"))}


def _exhibit(
    exhibit: Exhibit, clean: Images, labelled: LabelledImages, some: LabelledImages, place: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return one victim's part of the record and its pictures, whose names begin with ``place``."""
    card, backdoor = exhibit.card, exhibit.victim.backdoor
    assert backdoor is not None
    device = device_of(exhibit.victim.model)
    triggered = round_to_8_bits(backdoor.trigger(clean.to(device))).to(clean.device)
    residual = triggered - clean
    factor = _factor(residual)
    files = {}
    for i in range(len(clean)):
        files[f"{place}/{i}-triggered.png"] = to_png(triggered[i])
        files[f"{place}/{i}-residual.png"] = to_png((0.5 + factor * residual[i]).clamp(0, 1))
    attack = _attack(card)
    name = attack.pop("name")
    row = next((row for row in rows("attack") if row.name == name), None)
    measured = card.get("measured")
    measured = measured if isinstance(measured, Mapping) else {}
    said = {
        "name": exhibit.name,
        "attack": name,
        "title": row.title if row else "",
        "paper": row.paper if row else "",
        "settings": attack,
        "aim": _aim(backdoor, labelled.classes),
        "arch": card.get("arch"),
        "data": _at(card, "made", "data", "source"),
        "epochs": _at(card, "made", "recipe", "epochs"),
        "seed": _at(card, "made", "seed"),
        "poisoned": _at(card, "poisoned", "images"),
        **{key: measured.get(key) for key in ("acc", "asr", "ra", "visibility")},
        "residual_factor": factor,
        "answers": _answers(exhibit.victim, backdoor, clean, triggered, labelled),
        "triggered": [f"{place}/{i}-triggered.png" for i in range(len(clean))],
        "residual": [f"{place}/{i}-residual.png" for i in range(len(clean))],
        "spectra": {
            "triggered": _spectrum(t for _, t in _pairs(some, backdoor.trigger, device)),
            "residual": _spectrum(t - c for c, t in _pairs(some, backdoor.trigger, device)),
        },
    }
    return said, files


def _of_different_classes(test: LabelledImages, order: Tensor, shown: int) -> Tensor:
    """Return the first position in ``order`` of each class, ``shown`` of them, by class."""
    labels = test.labels.cpu()[order]
    # The last write wins, so going backward leaves each class's first image.
    first = {int(k): int(i) for i, k in zip(order.flip(0), labels.flip(0), strict=True)}
    drawn = list(dict.fromkeys(labels.tolist()))[:shown]
    return torch.tensor([first[k] for k in sorted(drawn)])


def _factor(residual: Images) -> int:
    """Return the largest factor that leaves nearly all changes between black and white."""
    changes = residual.abs().flatten()
    changes = changes[changes > 0]
    if not len(changes):
        return 1
    strong = float(changes.sort().values[int(0.99 * (len(changes) - 1))])
    return max([f for f in _FACTORS if f * strong <= 0.5] or [1])


@torch.no_grad()
def _answers(
    victim: Victim, backdoor: Backdoor, clean: Images, triggered: Images, labelled: LabelledImages
) -> list[dict[str, str]]:
    """Return what the network says of each image, without and with the trigger."""
    place = next(victim.model.parameters())
    with eval_mode(victim.model):
        said = [victim.model(x.to(place)).argmax(1).cpu() for x in (clean, triggered)]
    wanted = backdoor.rule.wanted(labelled.labels.cpu())
    return [
        dict(zip(("clean", "triggered", "wanted"), map(labelled.classes.__getitem__, k),
                 strict=True))
        for k in torch.stack([*said, wanted], 1).tolist()
    ]  # fmt: skip


def _clean(images: LabelledImages) -> Iterator[Images]:
    return (round_to_8_bits(batch) for batch, _ in images.batches(_BATCH))


def _pairs(
    images: LabelledImages, trigger: Trigger, device: torch.device
) -> Iterator[tuple[Images, Images]]:
    """Yield clean and triggered images as 8-bit files hold them."""
    for clean in _clean(images):
        yield clean, round_to_8_bits(trigger(clean.to(device))).to(clean.device)


@torch.no_grad()
def _spectrum(batches: Iterator[Images]) -> list[list[float]]:
    """Return log₁₀(1 + mean magnitude) of the DCT coefficients, to three decimals."""
    total: Float[Tensor, "h w"] | float = 0.0
    n = 0
    for images in batches:
        total = total + mean_magnitude(images).double() * len(images)
        n += len(images)
    logarithm = torch.log10(1 + torch.as_tensor(total) / n)
    h, w = logarithm.shape
    if max(h, w) > _SIDE:
        logarithm = F.adaptive_avg_pool2d(logarithm[None, None], (min(h, _SIDE), min(w, _SIDE)))
    plain = logarithm.reshape(logarithm.shape[-2:]).tolist()
    return [[round(value, 3) for value in row] for row in plain]


def _aim(backdoor: Backdoor, classes: Sequence[str]) -> str:
    rule = backdoor.rule
    if isinstance(rule, AllToOne):
        return f"every class becomes {classes[rule.target]}"
    return "every class becomes the next"


def _at(card: Mapping[str, Any], *keys: str) -> Any:
    """Return an entry of a card, None where it or what leads there is missing."""
    value: Any = card
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
