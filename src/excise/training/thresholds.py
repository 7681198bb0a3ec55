"""Prune by masks at a rising threshold, as long as accuracy holds: how ANP and RNP end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from excise.models import apply_edits
from excise.training.masks import edits_below
from excise.training.pairs import count_correct
from excise.types import Edit, Edits, LabelledImages, OnRound, Row

__all__ = ["prune_below", "thresholds"]


def thresholds(step: float, last: float) -> list[float]:
    """Return 0, step, 2·step, … up to ``last``, without the errors of adding floats up."""
    return [number * step for number in range(int(last / step + 1e-9) + 1)]


def prune_below(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    candidates: list[float],
    data: LabelledImages,
    *,
    allowed: float,
    relative: bool,
    first_failure_ends: bool,
    batch_size: int,
    on_round: OnRound,
) -> tuple[Edits, list[Row]]:
    """Return the edits of the largest threshold at which accuracy holds, and a row a threshold.

    Args:
        model: in eval mode; pruned in place further than the edits say, so give a copy.
        masks: by the name of a γ, ``(channels,)``.
        candidates: thresholds, rising.
        data: images that decide.
        allowed: largest drop of accuracy, exclusive if ``relative``, inclusive else.
        relative: whether it is a fraction of the accuracy before, or absolute.
        first_failure_ends: whether no larger threshold is tried after one that fails.
        batch_size: images at a time.
        on_round: called after every threshold.
    """
    before = count_correct(model, data, batch_size)
    done: list[Edit] = []
    kept: Edits = ()
    rows: list[Row] = []
    for number, (threshold, new) in enumerate(_new_edits(masks, candidates), 1):
        apply_edits(model, tuple(new), ())
        done += [replace(edit, round=number) for edit in new]
        correct = count_correct(model, data, batch_size)
        lost = before - correct
        # In whole images: with ten of them a drop of a tenth must not hang on rounding.
        holds = lost < allowed * before - 1e-9 if relative else lost <= allowed * len(data) + 1e-9
        rows.append({
            "stage": "prune", "round": number, "threshold": threshold, "pruned": len(done),
            "accuracy": correct / len(data), "holds": int(holds),
        })  # fmt: skip
        on_round(rows[-1])
        if holds:
            kept = tuple(done)
        elif first_failure_ends:
            break
    return kept, rows


def _new_edits(
    masks: Mapping[str, Tensor], candidates: list[float]
) -> Iterator[tuple[float, list[Edit]]]:
    """Yield each threshold and what it prunes beyond the threshold before it."""
    seen: set[tuple[str, int | None]] = set()
    masks = {name: torch.nan_to_num(mask.detach(), nan=1.0) for name, mask in masks.items()}
    for threshold in candidates:
        new = [e for e in edits_below(masks, threshold) if (e.layer, e.index) not in seen]
        seen.update((edit.layer, edit.index) for edit in new)
        yield threshold, new
