"""What recovered triggers do to images that nobody searched with, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from excise.audit.attacking import predictions
from excise.data import evenly
from excise.experiments.pictures import one_of_each_class, triples
from excise.rates import Rate
from excise.types import LabelledImages, RecoveredTrigger

__all__ = ["COUNTED", "recovered_triggers"]

#: Pictures shown of each trigger, and images its rate is counted on, at most.
_SHOWN, COUNTED = 3, 1000
#: What a trigger is called, by its type.
_KINDS = {
    "Added": "faint pattern",
    "AddedSmooth": "smooth pattern",
    "AddedWaves": "pattern of few waves",
    "Drawn": "change drawn for each image",
    "Searching": "change searched for in each image",
    "MaskedTrigger": "patch",
    "Warped": "warp",
}


def recovered_triggers(
    triggers: Sequence[RecoveredTrigger],
    given: nn.Module,
    images: LabelledImages,
    repaired: nn.Module | None = None,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return a row of the record for each trigger, and the PNG files the rows name.

    Args:
        triggers: each is put on images of other classes than its own; where there is no such image
            it is left out.
        given: the network they were recovered from.
        images: ones they were not searched with, where there are any.
        repaired: the same network after its repair; None: it was not repaired.
    """
    rows, pictures = list[dict[str, Any]](), dict[str, bytes]()
    # Triggers of one class are tried on the same images: what is said without any is asked once.
    tried: dict[int | None, tuple[LabelledImages, torch.Tensor]] = {}
    for number, trigger in enumerate(triggers):
        target = trigger.target
        if target is not None and not bool((images.labels != target).any()):
            continue
        if target not in tried:
            some = _others(images, target)
            tried[target] = some, predictions(given, None, some)
        row, files = _tried(trigger, number, given, *tried[target], repaired)
        rows.append(row)
        pictures |= files
    return rows, pictures


def _others(images: LabelledImages, target: int | None) -> LabelledImages:
    """Return images of other classes, :data:`COUNTED` at most, evenly chosen."""
    others = images.subset(images.labels != target) if target is not None else images
    return evenly(others, COUNTED)


def _tried(
    found: RecoveredTrigger,
    number: int,
    given: nn.Module,
    some: LabelledImages,
    clean: torch.Tensor,
    repaired: nn.Module | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    target = found.target
    said = {"before": clean, "after": predictions(given, found, some)}
    rates = {"without": said["before"], "rate": said["after"]}
    if repaired is not None:
        said["repaired"] = predictions(repaired, found, some)
        rates["repaired"] = said["repaired"]

    def rate(each: torch.Tensor) -> Rate:
        """Without a class of its own a trigger works where the answer is no longer the same."""
        hits = each == target if target is not None else each != said["before"]
        return Rate.of(hits.numpy())

    index = one_of_each_class(some.labels, torch.ones(len(some), dtype=torch.bool), _SHOWN)
    names, scale, files = triples(some.subset(index).floats(), found, f"pictures/trigger-{number}-")
    return {
        "kind": _KINDS.get(type(found.trigger).__name__, "trigger"),
        "class": some.classes[target] if target is not None else None,
        "size": found.evidence.size,
        "explained": found.evidence.explained,
        **{name: rate(each).to_json() for name, each in rates.items()},
        "residual_scale": scale,
        "shown": [
            {
                "label": some.classes[int(some.labels[k])],
                **{name: some.classes[int(each[k])] for name, each in said.items()},
                **row,
            }
            for k, row in zip(index.tolist(), names, strict=True)
        ],
    }, files
