"""Repair a network, measure it before and after, and leave a record.

Leakage is kept out: the defense runs on the defender's images alone. Test images serve to measure
the network before and after it, and the pruning curve is replayed from what it says it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from excise.audit import audit
from excise.errors import ModelError
from excise.evaluation import (
    Evaluation,
    Finding,
    Limits,
    check,
    compare,
    evaluate,
    judge,
    voided,
)
from excise.experiments.doubts import doubts
from excise.experiments.environment import environment, peak_memory_mib
from excise.experiments.pictures import trigger_pictures
from excise.experiments.pruning_curve import filter_map, pruning_curve, rebuilt
from excise.experiments.recovered import COUNTED, recovered_triggers
from excise.files import whole_directory, write_bytes, write_json
from excise.inversion import Combined, Oracle
from excise.models import Network, Unit, device_of, trace, weights_hash, write_model
from excise.registry import spec_of
from excise.reports import write_report
from excise.seeding import Rng
from excise.types import (
    AllToOne,
    Backdoor,
    DefenderData,
    Defense,
    Evidence,
    Inverter,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    Repair,
    ignore_round,
)

__all__ = ["RECORD_VERSION", "Outcome", "Question", "model_spec", "run_repair", "write_outcome"]

RECORD_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is to be repaired, with what, and how the result is judged.

    Args:
        model: the given network; never modified.
        method: a defense.
        data: what the defense may see.
        seed: stands for everything the defense draws.
        test: images the defense never sees; None if there are none left to measure on.
        backdoor: what the evaluation measures ASR and RA with; None if the trigger is unknown.
        twin: a clean twin of the network, whose figures are the floor.
        limits: what counts as repaired.
        planted_asr: the ASR the victim's card states.
        described: where model and images come from, for the record.
        curve_images: test images on which the pruning curve is replayed; 0: no curve.
        audited: attack the repaired network with the defender's images; with the backdoor's
            trigger if it is known.
        before: how the given network does on ``test``, if that was measured before.
        floor: how its twin does, likewise.
    """

    model: nn.Module
    method: Defense
    data: DefenderData
    seed: int = 0
    test: LabelledImages | None = None
    backdoor: Backdoor | None = None
    twin: nn.Module | None = None
    limits: Limits = field(default_factory=Limits)
    planted_asr: float | None = None
    described: Mapping[str, Any] = field(default_factory=dict)
    curve_images: int = 1000
    audited: bool = False
    before: Evaluation | None = None
    floor: Evaluation | None = None

    def measure(self, model: nn.Module, images: LabelledImages) -> Evaluation:
        """Return how ``model`` does on ``images``, under the trigger if there is one."""
        return evaluate(
            model,
            images,
            trigger=self.backdoor.trigger if self.backdoor else None,
            rule=self.backdoor.rule if self.backdoor else None,
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a repair leaves: the network, its record, and the report's pictures by file name."""

    repair: Repair
    record: dict[str, Any]
    pictures: Mapping[str, bytes]


def model_spec(network: Network, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of the given network, so that no other is taken for it.

    Args:
        network: as it was given.
        card: its bundle's, as excise plant writes it; empty where it has none.
    """
    made = card.get("made") or {}
    return {
        "arch": network.arch,
        "classes": list(network.classes),
        "input_size": list(network.input_shape[1:]),
        "attack": made.get("attack"),
        "victim_seed": made.get("seed"),
        "weights": weights_hash(network),
    }


def run_repair(
    question: Question,
    *,
    command: str = "",
    on_round: OnRound = ignore_round,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Outcome:
    """Repair, and measure before and after.

    A trigger, twin or test images that do not fit the network are found out before the repair.

    Args:
        question: what, with what, judged how.
        command: how a person would run this again; stands in the record.
        on_round: called by the defense after each of its rounds.
        on_stage: called with the name of each stage as it starts.
    """
    start = time.perf_counter()
    rng = Rng(question.seed)
    device = device_of(question.model)
    if question.before is None or (question.floor is None and question.twin is not None):
        on_stage("measuring the given network")
        question = _measured_before(question)
    doubted = doubts(question.model, question.data.everything(), question.before)
    for doubt in doubted:
        on_stage(f"{doubt.level}: {doubt.message}")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    on_stage("repairing")
    began = time.perf_counter()
    repair = question.method.repair(
        question.model, question.data, rng.child("method"), on_round=on_round
    )
    seconds = {**repair.seconds, "repair": time.perf_counter() - began}
    units = trace(question.model, question.data.train.floats()[:2])
    record: dict[str, Any] = {
        "version": RECORD_VERSION,
        "kind": "repair",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "spec": {
            "seed": question.seed,
            "defense": spec_of("defense", question.method),
            **_data_spec(question.data),
            **question.described,
        },
        "edits": [[e.kind, e.layer, e.index, e.round] for e in repair.edits],
        "filters": filter_map(repair, units),
        "history": [dict(row) for row in repair.history],
        "assumed": list(repair.assumed),
        "notes": list(repair.notes),
        "peak_memory_mib": peak_memory_mib(device),
        "environment": environment(device),
    }
    on_stage("measuring")
    measured, pictures = _measure(question, repair, units, rng, doubted)
    record |= measured
    if question.audited:
        on_stage("attacking the repaired network")
        began = time.perf_counter()
        record |= _audited(question, repair, rng, record["verdict"], on_round)
        seconds["audit"] = time.perf_counter() - began
    record["seconds"] = {**seconds, "total": time.perf_counter() - start}
    return Outcome(repair, record, pictures)


def _audited(
    question: Question, repair: Repair, rng: Rng, verdict: Mapping[str, Any], on_round: OnRound
) -> dict[str, Any]:
    """Return what attacks on the repaired network came to, and the verdict in their light."""
    known, backdoor = None, question.backdoor
    if backdoor is not None:
        target = backdoor.rule.target if isinstance(backdoor.rule, AllToOne) else None
        known = RecoveredTrigger(backdoor.trigger, target, Evidence(told=True))
    report = audit(
        question.model, repair.model, question.data, rng.child("audit"),
        inverter=_searching(question.method), known=known, on_round=on_round,
    )  # fmt: skip
    if report.failed and verdict["ok"]:
        names = " and ".join(finding.name for finding in report.failed)
        sentence = f"Incomplete: the repair does not withstand the audit ({names}). Without it: "
        rest = verdict["sentence"]
        sentence += rest[:1].lower() + rest[1:]
        verdict = {"status": "incomplete", "sentence": sentence, "ok": False}
    return {"audit": report.to_json(), "verdict": dict(verdict)}


def _searching(method: Defense) -> Inverter | None:
    """Return what the defense finds triggers with; None if it is told them, or needs none."""
    inverter = getattr(method, "inverter", None)
    if isinstance(inverter, Combined):
        # An attack tries what a repair would leave alone for want of a second sign.
        return replace(inverter, least_memory=0.0)
    return None if isinstance(inverter, Oracle) else inverter


def _measured_before(question: Question) -> Question:
    """Return the question with the figures of the given network and of its twin."""
    images, before, floor = _images(question), question.before, question.floor
    if before is None:
        before = question.measure(question.model, images)
    if floor is None and question.twin is not None:
        floor = question.measure(question.twin, images)
    return replace(question, before=before, floor=floor)


def _images(question: Question) -> LabelledImages:
    """Return the test images; without any, the defender's own."""
    images = question.test if question.test is not None else question.data.everything()
    return images.to(device_of(question.model))


def _measure(
    question: Question,
    repair: Repair,
    units: Sequence[Unit],
    rng: Rng,
    doubted: tuple[Finding, ...],
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what the test images say; without any, the defender's own, and a warning."""
    test, images = question.test, _images(question)
    before, floor = question.before, question.floor
    assert before is not None
    pruned = None
    if repair.edits and any(row.get("stage") == "tune" for row in repair.history):
        pruned = question.measure(rebuilt(question.model, repair.edits, units), images)
    after = question.measure(repair.model, images)
    comparison = compare(before, after, rng.child("evaluate"), floor)
    checked = check(
        before,
        after,
        comparison,
        floor=floor,
        planted_asr=question.planted_asr,
        test=test,
        defender=question.data,
        edits=repair.edits,
        model_before=question.model,
        model_after=repair.model,
    )
    every = dict.fromkeys((*doubted, *checked))  # some doubts are among the checks too
    findings = [finding.to_json() for finding in every]
    if test is None:
        findings.insert(0, {
            "name": "no-test-images",
            "level": "warning",
            "message": "There were no images left that the repair did not use: the figures are of "
            "the defender's own images and flatter the repair. Give --test, or more images than "
            "--spc takes.",
        })  # fmt: skip
    verdict = judge(before, after, comparison, floor, question.limits)
    untold = [trigger for trigger in repair.triggers if not trigger.evidence.told]
    found, files = recovered_triggers(untold, question.model, images, repair.model)
    shown: list[dict[str, Any]] = []
    scale, pictures = 1.0, dict[str, bytes]()
    if question.backdoor is not None:
        shown, scale, pictures = trigger_pictures(images, question.backdoor.trigger, before, after)
    return {
        "before": before.to_json(),
        "pruned": pruned.to_json() if pruned else None,
        "after": after.to_json(),
        "floor": floor.to_json() if floor else None,
        "comparison": comparison.to_json(),
        "curve": pruning_curve(
            question.model,
            repair,
            images,
            question.measure,
            units=units,
            count=question.curve_images,
        ),
        "checks": findings,
        "verdict": voided(verdict, every).to_json(),
        "pictures": shown,
        "residual_scale": scale,
        "triggers": found,
        "tried_on": {"images": min(len(images), COUNTED), "unseen": test is not None},
    }, pictures | files


def _data_spec(data: DefenderData) -> dict[str, Any]:
    held = data.validation
    return {
        "data": {
            "pool": data.pool,
            "fingerprint": data.everything().fingerprint(),
            "train_per_class": data.train.counts(),
            "validation_per_class": held.counts() if held is not None else None,
        }
    }


def write_outcome(directory: Path, outcome: Outcome, card: Mapping[str, Any]) -> Path:
    """Write the repaired bundle with record, pictures and report; return the report's path.

    The directory appears whole or not at all.

    Args:
        directory: replaced if it exists.
        outcome: its network must be a :class:`excise.models.Network`.
        card: what the repaired network's card says beside its architecture.
    """
    model = outcome.repair.model
    if not isinstance(model, Network):
        raise ModelError(
            "a network loaded by excise.load_model",
            got=type(model).__qualname__,
            remedy="Save a module of your own with torch or safetensors.",
        )
    with whole_directory(directory) as part:
        write_model(part, model, card)
        for name, content in outcome.pictures.items():
            write_bytes(part / name, content)
        write_json(part / "record.json", outcome.record)
        write_report(part)
    return directory / "report.html"
