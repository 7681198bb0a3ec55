"""Scan images for triggers: learn from clean ones, measure false alarms, judge the others.

Some clean images are held back, and the detector never learns from them: how many of these it flags
says what a flag is worth. Nothing else is known here, no network and no trigger.
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
from torch import Tensor

from excise.data import Pictures, to_png
from excise.dct import dct2
from excise.detection import Frequency, FrequencyScorer, save_scorer
from excise.errors import DataError
from excise.evaluation.hashing import fingerprint, fingerprints
from excise.evaluation.metrics import Rate
from excise.evaluation.spectrum import high_frequencies, mean_magnitude
from excise.experiments.environment import environment, peak_memory_mib
from excise.files import whole_directory, write_bytes, write_json, write_text
from excise.registry import spec_of
from excise.reports.scan import render_scan
from excise.reports.spectra import color_bar, spectrum_png
from excise.seeding import Rng
from excise.types import SUSPICIOUS, OnRound, as_floats, ignore_round

__all__ = ["LEAST_CLEAN", "Fitted", "Scan", "Scanned", "run_scan", "write_scan"]

SCAN_VERSION = 1
#: Fewer clean images teach nothing, and leave nothing to measure false alarms on.
LEAST_CLEAN = 10
#: Flagged pictures on the page, most suspicious first, and others beside them.
SHOWN_FLAGGED, SHOWN_OTHERS = 48, 6
#: Images the mean clean spectrum is taken over, at most.
_SPECTRUM_IMAGES = 5000
_BATCH = 500
#: Where more than this share of clean pictures is flagged, no flag means anything.
_TOO_MANY = 0.2


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector that was fitted before, and what its description says."""

    scorer: FrequencyScorer
    description: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What is to be scanned, and what the detector learns from.

    Args:
        source: pictures to judge.
        clean: pictures known to be clean, of the same shape.
        detector: what learns from them; or one that did before.
        seed: draws which clean pictures are held back, and all that the detector draws.
        held_back: which share of the clean pictures the detector does not learn from.
        device: where to work.
        described: what else the record is to say of the pictures.
        notes: what else a reader should know.
    """

    source: Pictures
    clean: Pictures
    detector: Frequency | Fitted
    seed: int = 0
    held_back: float = 0.2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    described: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a scan leaves: the detector, what it learned from, the record, and pictures by name."""

    scorer: FrequencyScorer
    description: Mapping[str, Any]
    record: dict[str, Any]
    pictures: dict[str, bytes]


def run_scan(
    scan: Scan,
    *,
    command: str = "",
    on_round: OnRound = ignore_round,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Scanned:
    """Fit the detector unless it was, measure its false alarms, and judge every picture.

    Raises:
        DataError: too few clean pictures, or pictures of another shape than the clean ones.
    """
    _check(scan)
    learned, held = _parts(scan)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    if isinstance(scan.detector, Fitted):
        scorer, description = scan.detector.scorer, scan.detector.description
    else:
        on_stage(f"learning from {len(learned):,} clean pictures")
        images = scan.clean.images[learned].to(scan.device)
        scorer = scan.detector.fit(images, Rng(scan.seed).child("detector"), on_round=on_round)
        description = {
            "detector": spec_of("detector", scan.detector),
            "seed": scan.seed,
            "learned_from": fingerprint(scan.clean.images[learned]),
            "clean_images": len(learned),
        }
        seconds["fit"] = time.perf_counter() - start
    on_stage(f"judging {len(scan.source.names):,} pictures, and {len(held):,} clean ones held back")
    start = time.perf_counter()
    suspicion = scorer(scan.source.images).numpy()
    alarms = scorer(scan.clean.images[held]).numpy()
    seconds["score"] = time.perf_counter() - start
    flagged, false_alarms = Rate.of(suspicion >= SUSPICIOUS), Rate.of(alarms >= SUSPICIOUS)
    spectra, pictures = _pictures(scan, suspicion, held)
    record = {
        "version": SCAN_VERSION,
        "kind": "image-scan",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "spec": {
            "detector": description.get("detector"),
            "seed": scan.seed,
            "held_back": scan.held_back,
            "fitted_before": isinstance(scan.detector, Fitted),
            **scan.described,
        },
        "clean": {"learned_from": len(learned), "held_back": len(held)},
        "shape": list(scan.source.images.shape[1:]),
        "flagged": flagged.to_json(),
        "false_alarms": false_alarms.to_json(),
        "verdict": _verdict(flagged, false_alarms),
        "notes": [*scan.notes, *scorer.notes, *_notes(scan, description, learned, held)],
        "unreadable": list(scan.source.unreadable),
        "unreadable_clean": list(scan.clean.unreadable),
        "images": [
            {"name": name, "suspicion": float(s), "flagged": bool(s >= SUSPICIOUS)}
            for name, s in zip(scan.source.names, suspicion, strict=True)
        ],
        **spectra,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_mib": peak_memory_mib(scan.device),
        "environment": environment(scan.device),
    }
    return Scanned(scorer, description, record, pictures)


def _check(scan: Scan) -> None:
    n, shape, clean = len(scan.clean.names), scan.source.images.shape[1:], scan.clean.images.shape
    if n < LEAST_CLEAN:
        raise DataError(
            f"at least {LEAST_CLEAN} clean pictures, better some hundreds",
            got=str(n),
            remedy="Add pictures that are known to be clean, like those to be scanned.",
        )
    if shape != clean[1:]:
        expected, got = (f"{s[-2]} × {s[-1]} pixels" for s in (clean, shape))
        raise DataError(
            f"pictures of {expected}, like the clean ones",
            got=got,
            remedy="Give clean pictures of the same origin and size. --image-size N scales both, "
            "which can wash out what the detector looks for.",
        )


def _parts(scan: Scan) -> tuple[Tensor, Tensor]:
    """Return the positions of the clean pictures to learn from, and of those held back."""
    n = len(scan.clean.names)
    count = min(max(1, round(scan.held_back * n)), n - 2)
    order = torch.randperm(n, generator=Rng(scan.seed).torch("held back"))
    return order[count:].sort().values, order[:count].sort().values


def _verdict(flagged: Rate, alarms: Rate) -> dict[str, Any]:
    """Return in a word and a sentence what was found. Flags alone do not make a finding."""
    of = f"{flagged.count:,} of {flagged.n:,} pictures {'is' if flagged.count == 1 else 'are'}"
    clean = (
        f"of {alarms.n:,} clean pictures it did not learn from, the detector flags "
        f"{alarms.count:,} ({_percent(alarms)})"
    )
    if flagged.count == 0:
        status = "nothing"
        sentence = f"None of {flagged.n:,} pictures is flagged. For comparison, {clean}."
    elif (alarms.value or 0) > _TOO_MANY:
        status = "unreliable"
        sentence = f"{of} flagged, but the detector has learned too little to rely on: {clean}."
    elif flagged.low > alarms.high:
        status = "more"
        sentence = f"{of} flagged ({_percent(flagged)}), more than chance explains: {clean}."
    else:
        status = "as-clean"
        sentence = f"{of} flagged ({_percent(flagged)}). That may be false alarms alone: {clean}."
    return {"status": status, "sentence": sentence, "ok": flagged.count == 0}


def _percent(rate: Rate) -> str:
    return f"{(rate.value or 0):.1%}, interval {100 * rate.low:.1f}–{100 * rate.high:.1f}"


def _notes(scan: Scan, description: Mapping[str, Any], learned: Tensor, held: Tensor) -> list[str]:
    notes = []
    if isinstance(scan.detector, Fitted) and description.get("learned_from") != fingerprint(
        scan.clean.images[learned]
    ):
        notes.append(
            "The detector was fitted before, on other clean pictures or with another seed: it may "
            "have learned from those counted as held back, and the false-alarm rate may be too low."
        )
    known = np.isin(fingerprints(scan.source.images), fingerprints(scan.clean.images)).sum()
    if known:
        notes.append(
            f"{known:,} of the scanned pictures {'is' if known == 1 else 'are'} among the clean "
            "ones too, which the detector learned to call clean."
        )
    if len(held) < 100:
        notes.append(
            f"Only {len(held):,} clean pictures were held back: the false-alarm rate is rough."
        )
    return notes


def _pictures(
    scan: Scan, suspicion: np.ndarray[Any, Any], held: Tensor
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the record's part about spectra, and the PNG files of the pictures shown."""
    mean, usual = _spectra(scan.clean.images[held[:_SPECTRUM_IMAGES]])
    order = np.argsort(-suspicion, kind="stable")
    flagged = [int(k) for k in order if suspicion[k] >= SUSPICIOUS][:SHOWN_FLAGGED]
    others = [int(k) for k in order if suspicion[k] < SUSPICIOUS][:SHOWN_OTHERS]
    chosen = flagged + others
    images = as_floats(scan.source.images[chosen]) if chosen else scan.source.images[:0].float()
    magnitude = dct2(255 * images).abs().mean(1)
    energy = _high_energy(images)
    top = float(torch.log10(1 + mean).max())
    if len(chosen):
        top = max(top, float(torch.log10(1 + magnitude).max()))
    files = {"pictures/clean-spectrum.png": _drawn(mean, top), "pictures/scale.png": color_bar()}
    shown = []
    for i, position in enumerate(chosen):
        excess = (torch.log10(1 + magnitude[i]) - torch.log10(1 + mean)).clamp(min=0)
        parts = {
            "picture": to_png(images[i]),
            "spectrum": _drawn(magnitude[i], top),
            "excess": spectrum_png(excess.tolist(), 1.0),
        }
        names = {part: f"pictures/{i}-{part}.png" for part in parts}
        files |= {names[part]: content for part, content in parts.items()}
        shown.append({
            "name": scan.source.names[position],
            "suspicion": float(suspicion[position]),
            "flagged": bool(suspicion[position] >= SUSPICIOUS),
            "above_clean": float((usual < energy[i]).float().mean()),
            **names,
        })  # fmt: skip
    spectra = {
        "shown": shown,
        "clean_spectrum": {
            "picture": "pictures/clean-spectrum.png",
            "images": min(len(held), _SPECTRUM_IMAGES),
            "strongest": 10**top - 1,
            "scale": "pictures/scale.png",
        },
    }
    return spectra, files


def _spectra(clean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean spectrum of clean images, and the energy each has in high frequencies."""
    total = torch.zeros(clean.shape[2:], dtype=torch.float64)
    energies = []
    for batch in clean.split(_BATCH):
        images = as_floats(batch)
        total += mean_magnitude(images).double() * len(batch)
        energies.append(_high_energy(images))
    return (total / len(clean)).float(), torch.cat(energies)


def _high_energy(images: Tensor) -> Tensor:
    high = high_frequencies(*images.shape[-2:])
    return (dct2(images).square().sum(1) * high).sum((-2, -1))


def _drawn(magnitude: Tensor, top: float) -> bytes:
    return spectrum_png(torch.log10(1 + magnitude).tolist(), top)


def write_scan(directory: Path, scanned: Scanned) -> Path:
    """Write record, page, pictures and the fitted detector; return the page's path.

    The directory appears whole or not at all; an older one in its place is replaced.
    """
    with whole_directory(directory) as part:
        for name, content in scanned.pictures.items():
            write_bytes(part / name, content)
        write_json(part / "record.json", scanned.record)
        write_text(part / "report.html", render_scan(scanned.record, scanned.pictures))
        save_scorer(part / "detector", scanned.scorer, scanned.description)
    return directory / "report.html"
