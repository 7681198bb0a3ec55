"""What a repair cut: every convolution with its cut filters, and every pruning round replayed.

Only images and figures of the measuring go in; nothing here reaches the defense.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from excise.evaluation import Evaluation
from excise.models import Unit, apply_edits
from excise.types import Edit, LabelledImages, Repair

__all__ = ["filter_map", "pruning_curve", "rebuilt"]

#: How a network does on some images.
Measured = Callable[[nn.Module, LabelledImages], Evaluation]


def rebuilt(given: nn.Module, edits: tuple[Edit, ...], units: Sequence[Unit]) -> nn.Module:
    """Return a network with ``edits`` made, as it was before fine-tuning.

    Args:
        given: is not modified.
        edits: what a defense says it cut.
        units: of the network.
    """
    model = copy.deepcopy(given)
    apply_edits(model, edits, units)
    return model


#: Rounds of a long pruning that its curve shows, evenly spaced.
_CURVE_POINTS = 60


def pruning_curve(
    given: nn.Module,
    repair: Repair,
    images: LabelledImages,
    measure: Measured,
    *,
    units: Sequence[Unit],
    count: int,
) -> list[dict[str, Any]]:
    """Replay every pruning round on some test images, the undone rounds too.

    A long pruning is shown by about ``_CURVE_POINTS`` of its rounds, evenly spaced; the last one
    that was kept is always among them.

    Args:
        given: the network before the repair; not modified.
        repair: what was done to it.
        images: to measure on.
        measure: returns how a network does on images.
        units: of the network.
        count: about how many of ``images``, evenly chosen; 0: no curve.
    """
    rounds = _rounds(repair)
    if not rounds or count <= 0:
        return []
    kept = {edit.round for edit in repair.edits}
    last_kept = max((n for n, made in enumerate(rounds, 1) if made[0].round in kept), default=0)
    steps = range(0, len(rounds) + 1, math.ceil(len(rounds) / _CURVE_POINTS))
    shown = {*steps, last_kept, len(rounds)}
    step = max(1, len(images) // count)
    some = images.subset(torch.arange(0, len(images), step))
    model = copy.deepcopy(given)
    curve = []
    for number in range(len(rounds) + 1):
        made = rounds[number - 1] if number else ()
        apply_edits(model, made, units)
        if number not in shown:
            continue
        measured = measure(model, some)
        one = made[0] if len(made) == 1 else None
        curve.append({
            "round": number,
            "layer": one.layer if one else None,
            "index": one.index if one else None,
            "acc": measured.acc.value,
            "asr": measured.asr.value if measured.asr else None,
            "ra": measured.ra.value if measured.ra else None,
            "kept": not number or made[0].round in kept,
            "n": len(some),
        })  # fmt: skip
    return curve


def _rounds(repair: Repair) -> list[tuple[Edit, ...]]:
    """Return what each pruning round cut, kept or not; the edits alone where no row names them."""
    rows = [row for row in repair.history if row.get("stage") == "prune" and "layer" in row]
    if rows:
        return [(_edit(row),) for row in rows]
    by_round: dict[int, list[Edit]] = {}
    for edit in repair.edits:
        if edit.index is not None:
            by_round.setdefault(edit.round, []).append(edit)
    return [tuple(by_round[number]) for number in sorted(by_round)]


def _edit(row: Mapping[str, Any]) -> Edit:
    kind = str(row.get("kind", "silence"))
    return Edit(kind, str(row["layer"]), int(row["index"]), int(row["round"]))


def filter_map(repair: Repair, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """Return every convolution, first to last, and which of its filters were cut.

    A channel of a batch norm that belongs to one convolution counts as that one's filter.

    Args:
        repair: what was done.
        units: of the network before it.
    """
    filters = {unit.layer: unit.layer for unit in units}
    filters |= {unit.owner: unit.layer for unit in units if unit.owner is not None}
    cut: dict[str, set[int]] = {unit.layer: set() for unit in units}
    for edit in repair.edits:
        if edit.index is not None and edit.layer in filters and edit.kind != "feature":
            cut[filters[edit.layer]].add(edit.index)
    return [
        {"layer": unit.layer, "filters": unit.filters, "cut": sorted(cut[unit.layer])}
        for unit in units
    ]
