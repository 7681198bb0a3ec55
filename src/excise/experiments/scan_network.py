"""Scan a network: is there a backdoor, which class does it lead to, and what does it look like?

The scanner sees the user's clean images and nothing else. How often a recovered trigger works is
counted on images the scanner did not search with, where there are any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from excise.evaluation import Finding
from excise.experiments.doubts import doubts
from excise.experiments.environment import environment, peak_memory_mib
from excise.experiments.recovered import COUNTED, recovered_triggers
from excise.files import whole_directory, write_bytes, write_json, write_text
from excise.models import device_of
from excise.registry import spec_of
from excise.reports.network_scan import render_network_scan
from excise.seeding import Rng
from excise.types import (
    DefenderData,
    Detector,
    Diagnosis,
    LabelledImages,
    OnRound,
    ignore_round,
)

__all__ = ["NetworkScan", "NetworkScanned", "run_network_scan", "write_network_scan"]

SCAN_VERSION = 1


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
    everything = scan.data.everything()
    doubted = doubts(scan.model, everything)
    for doubt in doubted:
        on_stage(f"{doubt.level}: {doubt.message}")
    on_stage("scanning")
    rng = Rng(scan.seed).child("method")
    diagnosis = scan.scanner.scan(scan.model, scan.data, rng, on_round=on_round)
    on_stage("trying what was recovered")
    tried = scan.unseen if scan.unseen is not None else everything
    found, pictures = recovered_triggers(diagnosis.triggers, scan.model, tried)
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
        "verdict": _verdict(diagnosis, classes, doubted),
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
        "tried_on": {"images": min(len(tried), COUNTED), "unseen": scan.unseen is not None},
        "notes": [*(doubt.message for doubt in doubted), *diagnosis.notes],
        "seconds": {**diagnosis.seconds, "total": time.perf_counter() - start},
        "peak_memory_mib": peak_memory_mib(device),
        "environment": environment(device),
    }
    return NetworkScanned(diagnosis, record, pictures)


def _verdict(
    diagnosis: Diagnosis, classes: list[str], doubted: Iterable[Finding]
) -> dict[str, Any]:
    """Return in a word and a sentence what was found, if anything can be said at all."""
    at = f"its statistic is {diagnosis.statistic:.2f}, and the alarm is from "
    at += f"{diagnosis.threshold:.2f} on"
    if diagnosis.backdoored:
        names = " and ".join(repr(classes[t]) for t in diagnosis.targets)
        status, sentence = "found", f"A backdoor is likely, and it leads to {names}: {at}."
    else:
        status, sentence = "nothing", f"No class stands out: {at}."
        sentence += " This does not prove that there is no backdoor."
    if any(doubt.is_problem for doubt in doubted):
        unfit = "Network and images do not fit (see the notes), so that this says nothing: "
        return {"status": "void", "sentence": unfit + sentence, "ok": False}
    return {"status": status, "sentence": sentence, "ok": status == "nothing"}


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
