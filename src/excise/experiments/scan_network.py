"""Scan a network: is there a backdoor, which class does it lead to, and what does it look like?

The scanner sees the user's clean images and nothing else. How often a recovered trigger works is
counted on images the scanner did not search with, where there are any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from excise.data import to_png
from excise.evaluation.metrics import Rate
from excise.experiments.environment import environment, peak_memory_mib
from excise.files import whole_directory, write_bytes, write_json, write_text
from excise.models import device_of, dtype_of, in_mode
from excise.registry import spec_of
from excise.reports.network_scan import render_network_scan
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Detector,
    Diagnosis,
    LabelledImages,
    OnRound,
    RecoveredTrigger,
    ignore_round,
    round_to_8_bits,
)

__all__ = ["NetworkScan", "NetworkScanned", "run_network_scan", "write_network_scan"]

SCAN_VERSION = 1
#: Pictures shown of each recovered trigger, and images its rate is counted on, at most.
_SHOWN, _COUNTED = 3, 1000
#: What a recovered trigger is called, by its type.
_KINDS = {"Added": "faint pattern", "AddedSmooth": "smooth pattern", "MaskedTrigger": "patch"}


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkScan:
    """What is to be scanned.

    Args:
        model: the network; never modified.
        scanner: what scans it.
        data: clean images it may use, all of them.
        unseen: images the scanner is not given, on which recovered triggers are tried; None if
            there are none left.
        seed: stands for everything the scanner draws.
        described: what else the record is to say of network and images.
    """

    model: nn.Module
    scanner: Detector
    data: DefenderData
    unseen: LabelledImages | None = None
    seed: int = 0
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class NetworkScanned:
    """What a scan leaves: the diagnosis, its record, and pictures by file name."""

    diagnosis: Diagnosis
    record: dict[str, Any]
    pictures: dict[str, bytes]


def run_network_scan(
    scan: NetworkScan,
    *,
    command: str = "",
    on_round: OnRound = ignore_round,
    on_stage: Callable[[str], None] = lambda name: None,
) -> NetworkScanned:
    """Scan, then show what was found.

    Raises:
        DataError: too few classes for the scanner.
        ModelError: a network whose answers are not finite.
    """
    start = time.perf_counter()
    device = device_of(scan.model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    on_stage("scanning")
    rng = Rng(scan.seed).child("method")
    diagnosis = scan.scanner.scan(scan.model, scan.data, rng, on_round=on_round)
    on_stage("trying what was recovered")
    everything = scan.data.everything()
    tried = scan.unseen if scan.unseen is not None else everything
    found, pictures = [], dict[str, bytes]()
    for number, trigger in enumerate(diagnosis.triggers):
        row, files = _tried(scan.model, trigger, number, tried)
        found.append(row)
        pictures |= files
    classes = list(everything.classes)
    record = {
        "version": SCAN_VERSION,
        "kind": "network-scan",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "spec": {
            "seed": scan.seed,
            "scanner": spec_of("scanner", scan.scanner),
            "data": {
                "pool": scan.data.pool,
                "fingerprint": everything.fingerprint(),
                "per_class": everything.counts(),
            },
            **scan.described,
        },
        "verdict": _verdict(diagnosis, classes),
        "statistic": diagnosis.statistic,
        "threshold": diagnosis.threshold,
        "targets": [classes[t] for t in diagnosis.targets],
        "classes": [
            {
                "name": name,
                "suspicion": diagnosis.per_class[c],
                "tests": {test: each[c] for test, each in diagnosis.tests.items()},
            }
            for c, name in enumerate(classes)
        ],
        "triggers": found,
        "tried_on": {"images": min(len(tried), _COUNTED), "unseen": scan.unseen is not None},
        "notes": list(diagnosis.notes),
        "seconds": {**diagnosis.seconds, "total": time.perf_counter() - start},
        "peak_memory_mib": peak_memory_mib(device),
        "environment": environment(device),
    }
    return NetworkScanned(diagnosis, record, pictures)


def _verdict(diagnosis: Diagnosis, classes: list[str]) -> dict[str, Any]:
    """Return in a word and a sentence what was found."""
    at = f"its statistic is {diagnosis.statistic:.2f}, and the alarm is from "
    at += f"{diagnosis.threshold:.2f} on"
    if diagnosis.backdoored:
        names = " and ".join(repr(classes[t]) for t in diagnosis.targets)
        sentence = f"A backdoor is likely, and it leads to {names}: {at}."
        return {"status": "found", "sentence": sentence, "ok": False}
    sentence = f"No class stands out: {at}. This does not prove that there is no backdoor."
    return {"status": "nothing", "sentence": sentence, "ok": True}


def _tried(
    model: nn.Module, found: RecoveredTrigger, number: int, images: LabelledImages
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what one recovered trigger does to images of other classes, and its pictures."""
    target = found.target
    others = images.subset(images.labels != target) if target is not None else images
    step = max(1, len(others) // _COUNTED)
    some = others.subset(torch.arange(0, len(others), step)[:_COUNTED])
    clean, triggered = _answers(model, some, None), _answers(model, some, found)
    wanted = target if target is not None else -1
    row: dict[str, Any] = {
        "kind": _KINDS.get(type(found.trigger).__name__, "trigger"),
        "class": images.classes[target] if target is not None else None,
        "size": found.evidence.size,
        "rate": Rate.of(triggered == wanted).to_json(),
        "without": Rate.of(clean == wanted).to_json(),
        "shown": [],
    }
    files: dict[str, bytes] = {}
    labels = some.labels.cpu()
    first = [int((labels == c).int().argmax()) for c in labels.unique()[:_SHOWN]]
    x = some.subset(torch.tensor(first)).floats()
    changed = round_to_8_bits(found(x))
    residual = (changed - x).abs()
    # Enlarged until the strongest change is nearly white, in whole steps a caption can name.
    scale = float(max(1, min(20, round(0.9 / max(float(residual.max()), 1e-3)))))
    row["residual_scale"] = scale
    for i, position in enumerate(first):
        parts = {"clean": x[i], "triggered": changed[i], "residual": residual[i] * scale}
        names = {part: f"pictures/{number}-{i}-{part}.png" for part in parts}
        files |= {names[part]: to_png(image.clamp(0, 1).cpu()) for part, image in parts.items()}
        row["shown"].append({
            "label": images.classes[int(labels[position])],
            "before": images.classes[int(clean[position])],
            "after": images.classes[int(triggered[position])],
            **names,
        })  # fmt: skip
    return row, files


def _answers(
    model: nn.Module, images: LabelledImages, trigger: RecoveredTrigger | None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    device, dtype = device_of(model), dtype_of(model)
    said = []
    with in_mode(model), torch.inference_mode():
        for x, _ in images.batches(256):
            x = round_to_8_bits(trigger(x.to(device))) if trigger is not None else x.to(device)
            said.append(model(x.to(dtype)).argmax(1).cpu())
    return torch.cat(said).numpy()


def write_network_scan(directory: Path, scanned: NetworkScanned) -> Path:
    """Write record, pictures and page; return the page's path.

    The directory appears whole or not at all; an older one in its place is replaced.
    """
    with whole_directory(directory) as part:
        for name, content in scanned.pictures.items():
            write_bytes(part / name, content)
        write_json(part / "record.json", scanned.record)
        page = render_network_scan(scanned.record, scanned.pictures)
        write_text(part / "report.html", page)
    return directory / "report.html"
