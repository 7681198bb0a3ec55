"""One network against another on the same test images: before and after a defense, and the floor.

Source: docs/conventions.md, "Metrics", "Intervals", "Floors" (every ASR and RA beside those of the
clean twin under the same trigger).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from excise.errors import DataError
from excise.evaluation.metrics import (
    RESAMPLES,
    BoolArray,
    Interval,
    PairedBootstrap,
    der_of_totals,
    share,
)
from excise.evaluation.outcomes import Evaluation, Outcomes
from excise.rates import Rate
from excise.seeding import Rng

__all__ = ["FEW", "Comparison", "compare"]

#: Of fewer images a difference reaches as far as the two rates' own intervals do. Resampled, a
#: handful of images that agree are certain of anything: one image lost is 100 points, no less.
FEW = 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of rates, each with a paired bootstrap 95 % interval. Fractions, not percent.

    Every ``delta`` is after minus before. What needs a trigger is None without one (or where no
    image counts), what needs a floor is None without it, and recalls need an all-to-one target
    that has test images.

    Args:
        delta_acc: change of clean accuracy; a loss is negative.
        delta_asr: change of attack success rate; a cure is negative.
        delta_ra: change of recovery accuracy.
        der: defense effectiveness rating.
        delta_target_recall: change of the target class's recall on clean images.
        asr_over_floor: ASR after minus the floor's.
        ra_under_floor: the floor's RA minus RA after.
        target_recall_under_floor: the floor's target recall minus target recall after.
    """

    delta_acc: Interval
    delta_asr: Interval | None = None
    delta_ra: Interval | None = None
    der: Interval | None = None
    delta_target_recall: Interval | None = None
    asr_over_floor: Interval | None = None
    ra_under_floor: Interval | None = None
    target_recall_under_floor: Interval | None = None

    @property
    def target_recall_loss(self) -> Interval | None:
        """How much recall the target class lost, by the floor if there is one, else by before.

        A backdoored network often answers with its target too readily; what a network never
        poisoned reaches is the fairer measure.
        """
        d = self.delta_target_recall
        if self.target_recall_under_floor is not None or d is None:
            return self.target_recall_under_floor
        return Interval(-d.value, -d.high, -d.low)

    def to_json(self) -> dict[str, Any]:
        """Return every figure by name, None where there is none; ready for a record."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if i is None else i.to_json() for name, i in found.items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Comparison:
        """Return the comparison :meth:`to_json` wrote.

        Raises:
            DataError: ``plain`` is not such a form.
        """
        names = {f.name for f in fields(cls)}
        if set(plain) != names or plain["delta_acc"] is None:
            raise DataError(
                f"a comparison with {', '.join(sorted(names))}",
                got=", ".join(sorted(plain)) or "nothing",
                remedy="Write it with Comparison.to_json.",
            )
        found: dict[str, Any] = {
            name: None if p is None else Interval.from_json(p) for name, p in plain.items()
        }
        return cls(**found)


def compare(
    before: Evaluation,
    after: Evaluation,
    rng: Rng,
    floor: Evaluation | None = None,
    *,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Return how ``after`` differs from ``before`` and from the floor, image by image.

    Args:
        before: the network as it was given.
        after: the repaired network, on the same test images under the same trigger.
        rng: its child ``"bootstrap"`` draws the resamples.
        floor: the clean twin, on the same test images under the same trigger.
        resamples: how many; all figures come from the same ones.

    Raises:
        DataError: evaluations of different images, classes or target rules, some with a trigger
            and some without, or without outcomes.
        SpecError: fewer than 100 resamples.
    """
    first, last = _paired(before, after)
    base = None if floor is None else _paired(before, floor)[1]

    columns: dict[str, BoolArray] = {
        "all": np.ones(len(first), dtype=bool),
        "correct0": first.correct,
        "correct": last.correct,
    }
    if attacked := bool(first.shown.any()):
        columns |= {
            "counted": first.shown,
            "success0": first.success,
            "success": last.success,
            "recovered0": first.recovered,
            "recovered": last.recovered,
        }
        if base is not None:
            columns |= {"floor_success": base.success, "floor_recovered": base.recovered}
    # Without a target class the recall columns stay out.
    own = np.zeros(len(first), dtype=bool) if after.target is None else first.labels == after.target
    if recalled := bool(own.any()):
        columns |= {"own": own, "recall0": own & first.correct, "recall": own & last.correct}
        if base is not None:
            columns |= {"floor_recall": own & base.correct}
    boot = PairedBootstrap(columns, rng.numpy("bootstrap"), resamples)

    def moved(a: str, b: str, among: str) -> Interval:
        found = boot.interval(lambda t: share(t[b] - t[a], t[among]))
        if columns[among].sum() >= FEW:
            return found
        was, now = (Rate.of(columns[name][columns[among]]) for name in (a, b))
        return Interval(
            found.value, min(found.low, now.low - was.high), max(found.high, now.high - was.low)
        )

    def change(a: str, b: str, among: str, known: bool) -> Interval | None:
        return moved(a, b, among) if known else None

    floored_attack, floored_recall = attacked and base is not None, recalled and base is not None
    return Comparison(
        delta_acc=moved("correct0", "correct", "all"),
        delta_asr=change("success0", "success", "counted", attacked),
        delta_ra=change("recovered0", "recovered", "counted", attacked),
        der=boot.interval(der_of_totals) if attacked else None,
        delta_target_recall=change("recall0", "recall", "own", recalled),
        asr_over_floor=change("floor_success", "success", "counted", floored_attack),
        ra_under_floor=change("recovered", "floor_recovered", "counted", floored_attack),
        target_recall_under_floor=change("recall", "floor_recall", "own", floored_recall),
    )


def _paired(a: Evaluation, b: Evaluation) -> tuple[Outcomes, Outcomes]:
    """Return the outcomes of both, after making sure that they can be compared by image."""
    if a.outcomes is None or b.outcomes is None:
        raise DataError(
            "evaluations with the outcome of each image",
            got="one read from JSON, which holds only figures",
            remedy="Read its outcomes with Outcomes.unpack and summarize, or evaluate again.",
        )
    if a.classes != b.classes or a.target != b.target:
        raise DataError(
            f"the same classes and target (here {len(a.classes)} and {a.target})",
            got=f"{len(b.classes)} classes and target {b.target}, or other names",
            remedy="Compare networks evaluated alike.",
        )
    x, y = a.outcomes, b.outcomes
    # A fingerprint is empty only in outcomes made by hand.
    same_images = not (x.images and y.images) or x.images == y.images
    if not same_images or not np.array_equal(x.labels, y.labels):
        raise DataError(
            "the same test images in the same order",
            got=f"{len(x)} and {len(y)} images that differ",
            remedy="Evaluate every network on one and the same test set.",
        )
    if (x.triggered is None) != (y.triggered is None):
        raise DataError(
            "a trigger in every evaluation, or in none",
            got="one with and one without",
            remedy="Evaluate every network under the same trigger.",
        )
    if x.counted is not None and not (_equal(x.counted, y.counted) and _equal(x.wanted, y.wanted)):
        raise DataError(
            "the same target rule in every evaluation",
            got="rules that count other images or want other classes",
            remedy="Evaluate every network with the same target or rule.",
        )
    return x, y


def _equal(a: object, b: object) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))
