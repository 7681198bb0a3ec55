"""The main jobs as functions: from a network and clean images to a diagnosis, or to a repair."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from excise.data import can_hold_back, defender_data, load_images
from excise.defenses import SoftPrune
from excise.detection import CombinedScan
from excise.errors import SpecError
from excise.experiments.doubts import doubts
from excise.inversion import Combined
from excise.models import check_model, device_of
from excise.registry import Kind
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Defense,
    Detector,
    Diagnosis,
    LabelledImages,
    OnRound,
    Repair,
    ignore_round,
)

__all__ = ["repair", "scan"]


def scan(
    model: nn.Module,
    clean: LabelledImages | tuple[Any, Any],
    *,
    method: Detector | None = None,
    spc: int | None = None,
    seed: int = 0,
    on_round: OnRound = ignore_round,
) -> Diagnosis:
    """Return whether ``model`` has a backdoor; it is never modified.

    Args:
        model: any network over images in [0, 1]; normalization is part of it.
        clean: images with true labels, or ``(images, labels)``.
        method: a scanner; None: :class:`excise.detection.CombinedScan`.
        spc: samples per class; None uses all the given images.
        seed: stands for every choice made; the same seed gives the same result.
        on_round: called with a row of figures after each round.

    Returns:
        Whether it is (``.backdoored``), which class it leads to (``.targets``), how suspicious each
        class is (``.per_class``), recovered triggers (``.triggers``) and remarks (``.notes``).
        Where the images do not fit the network the first remark says so, and a warning.

    Raises:
        DataError: images or labels do not fit, or too few classes.
        SpecError: ``method`` is no scanner.
        ModelError: the network does not fit the images, or its answers are not finite.
    """
    if method is not None:
        _check_method("scanner", "scan", method)
    images = clean if isinstance(clean, LabelledImages) else load_images(clean)
    check_model(model, images.shape, images.num_classes)
    rng = Rng(seed)
    data = defender_data(
        images,
        spc=spc,
        rng=rng.child("sample"),
        needs_validation=False,
        pool="the images given",
    ).to(device_of(model))
    scanner = CombinedScan() if method is None else method
    said = _doubts(model, data)
    found = scanner.scan(model, data, rng.child("method"), on_round=on_round)
    return replace(found, notes=(*said, *found.notes))


def repair(
    model: nn.Module,
    clean: LabelledImages | tuple[Any, Any],
    *,
    method: Defense | None = None,
    spc: int | None = None,
    seed: int = 0,
    validation_ratio: float = 0.1,
    paper_split: bool = False,
    on_round: OnRound = ignore_round,
) -> Repair:
    """Return a repaired copy of ``model``; the given one is never modified.

    Args:
        model: any network over images in [0, 1]; normalization is part of it.
        clean: images with true labels, or ``(images, labels)``; never test images.
        method: a defense, such as ``GradPrune(inverter=Oracle(trigger))``, which is told the
            trigger; None: ``SoftPrune(inverter=Combined())``, which finds it.
        spc: samples per class, validation included; None uses all the given images.
        seed: stands for every choice made; the same seed gives the same result.
        validation_ratio: share of the images held out to decide by.
        paper_split: take the paper's one extra image per class where the share rounds to none.
        on_round: called with a row of figures after each round.

    Returns:
        The repaired network (``.model``), what was cut (``.edits``), one row a round
        (``.history``), what was assumed (``.assumed``) and remarks (``.notes``). Where the images
        do not fit the network the first remark says so, and a warning.

    Raises:
        DataError: images, labels or their number do not fit.
        SpecError: ``method`` is no defense.
        ModelError: the network does not fit the images, or has no convolution.
    """
    if method is not None:
        _check_method("defense", "repair", method)
    images = clean if isinstance(clean, LabelledImages) else load_images(clean)
    check_model(model, images.shape, images.num_classes)
    rng = Rng(seed)
    data = defender_data(
        images,
        spc=spc,
        rng=rng.child("sample"),
        validation_ratio=validation_ratio,
        paper_split=paper_split,
        pool="the images given",
        # With one image a class there is none to decide by; who needs some says so.
        needs_validation=can_hold_back(images, spc, paper_split=paper_split),
    ).to(device_of(model))
    method = SoftPrune(inverter=Combined()) if method is None else method
    said = _doubts(model, data)
    done = method.repair(model, data, rng.child("method"), on_round=on_round)
    return replace(done, notes=(*said, *done.notes))


def _doubts(model: nn.Module, data: DefenderData) -> tuple[str, ...]:
    """Return why nothing said of this network on these images may be relied on; warn of it too."""
    found = [one.message for one in doubts(model, data.everything()) if one.is_problem]
    for message in found:
        warnings.warn(message, stacklevel=3)
    return tuple(found)


def _check_method(kind: Kind, verb: str, method: object) -> None:
    """Refuse what only names a method, or is the class of one."""
    if isinstance(method, type) or not callable(getattr(method, verb, None)):
        raise SpecError(
            f"a {kind} with its settings, such as excise.registry.build({kind!r}, NAME)",
            got=repr(method),
            remedy=f"`excise list {kind}s` names them all.",
        )
