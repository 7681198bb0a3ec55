"""What a network said of each test image, and the figures that follow from it.

Source: docs/conventions.md, "Metrics". Everything in an :class:`Evaluation` is a function of its
:class:`Outcomes`; the outcomes are kept because paired intervals need them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from excise.errors import DataError
from excise.evaluation.metrics import BoolArray, IntArray, Rate

__all__ = ["Evaluation", "Outcomes", "summarize"]

#: Stands for the prediction of a triggered image that was not shown because it does not count.
NOT_SHOWN = -1


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a network said of each of ``n`` test images, in the order of the test images.

    Args:
        labels: ``(n,)`` true classes.
        clean: ``(n,)`` predicted classes of the clean images.
        triggered: ``(n,)`` predicted classes of the triggered images, -1 where not counted;
            None without a trigger.
        counted: ``(n,)`` images the attack success rate is over; None without a trigger.
        wanted: ``(n,)`` the attacker's class for each image; None without a trigger.
        images: fingerprint of the clean images; empty where it is not known.

    Raises:
        DataError: arrays of different lengths, or only some of the three that a trigger brings.
    """

    labels: IntArray
    clean: IntArray
    triggered: IntArray | None = None
    counted: BoolArray | None = None
    wanted: IntArray | None = None
    images: str = ""

    def __post_init__(self) -> None:
        attack = (self.triggered, self.counted, self.wanted)
        given = [a for a in (self.labels, self.clean, *attack) if a is not None]
        if any(a.shape != (len(self.labels),) for a in given) or len(given) not in (2, 5):
            raise DataError(
                "labels and clean predictions, with a trigger also triggered predictions, counted "
                "and wanted, each of shape (n,)",
                got=", ".join(
                    "none" if a is None else str(a.shape)
                    for a in (self.labels, self.clean, *attack)
                ),
                remedy="Take outcomes from evaluate.",
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> BoolArray:
        """``(n,)`` whether the clean image was classified correctly."""
        hit: BoolArray = self.clean == self.labels
        return hit

    @property
    def shown(self) -> BoolArray:
        """``(n,)`` which images an attack success rate counts; nowhere without a trigger."""
        return np.zeros(len(self), dtype=bool) if self.counted is None else self.counted

    @property
    def success(self) -> BoolArray:
        """``(n,)`` whether the triggered image counts and was called what the attacker wants."""
        if self.triggered is None or self.wanted is None:
            return self.shown
        hit: BoolArray = self.shown & (self.triggered == self.wanted)
        return hit

    @property
    def recovered(self) -> BoolArray:
        """``(n,)`` whether the triggered image counts and was called its true class."""
        if self.triggered is None:
            return self.shown
        hit: BoolArray = self.shown & (self.triggered == self.labels)
        return hit

    def pack(self) -> dict[str, Any]:
        """Return a compact JSON form: predictions as base64 of uint8, or uint16 if need be.

        Triggered predictions are kept for counted images only, ``counted`` as one bit an image.
        """
        arrays = [a for a in (self.labels, self.clean, self.wanted) if a is not None]
        top = max((int(a.max(initial=0)) for a in arrays), default=0)
        if self.triggered is not None:
            top = max(top, int(self.triggered.max(initial=0)))
        kind = "u1" if top < 1 << 8 else "<u2" if top < 1 << 16 else "<u4"
        packed: dict[str, Any] = {
            "n": len(self),
            "type": kind,
            "images": self.images,
            "labels": _encode(self.labels, kind),
            "clean": _encode(self.clean, kind),
        }
        if self.triggered is not None and self.counted is not None and self.wanted is not None:
            bits = np.packbits(self.counted)
            packed["counted"] = base64.b64encode(bits.tobytes()).decode("ascii")
            packed["triggered"] = _encode(self.triggered[self.counted], kind)
            packed["wanted"] = _encode(self.wanted, kind)
        return packed

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Outcomes:
        """Return the outcomes :meth:`pack` wrote.

        Raises:
            DataError: ``packed`` is not such a form, or lengths in it do not agree.
        """
        try:
            n, kind = int(packed["n"]), str(packed["type"])
            labels, clean = (_decode(packed[name], kind, n) for name in ("labels", "clean"))
            images = str(packed["images"])
            if "triggered" not in packed:
                return cls(labels, clean, images=images)
            bits = np.frombuffer(base64.b64decode(packed["counted"], validate=True), np.uint8)
            counted = np.unpackbits(bits, count=n).astype(bool)
            triggered = np.full(n, NOT_SHOWN, dtype=np.int64)
            triggered[counted] = _decode(packed["triggered"], kind, int(counted.sum()))
            wanted = _decode(packed["wanted"], kind, n)
            return cls(labels, clean, triggered, counted, wanted, images)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "outcomes as Outcomes.pack writes them",
                got=f"{type(error).__name__}: {error}",
                remedy="The record is damaged or of another version; evaluate the network again.",
            ) from error


def _encode(values: IntArray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def _decode(text: str, kind: str, n: int) -> IntArray:
    if kind not in ("u1", "<u2", "<u4"):
        raise ValueError(f"unknown number type {kind!r}")
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype=kind)
    if len(values) != n:
        raise ValueError(f"{len(values)} numbers for {n} images")
    return values.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one network on one test set. Fractions, never percentages.

    Args:
        classes: names of the ``k`` classes.
        acc: clean images of all classes classified correctly.
        asr: triggered counted images called what the attacker wants; None without a trigger.
        ra: the same triggered images called their true class; None without a trigger.
        target: the target class of an all-to-one attack, where one is known.
        target_recall: clean images of the target class called so; None without a target.
        per_class_recall: the same for every class.
        confusion: ``(k, k)`` clean images, true class down, predicted class across.
        triggered_confusion: ``(k, k)`` the same for triggered counted images.
        outcomes: what was said of each image; None where the evaluation was read from JSON.
    """

    classes: tuple[str, ...]
    acc: Rate
    asr: Rate | None
    ra: Rate | None
    target: int | None
    target_recall: Rate | None
    per_class_recall: tuple[Rate, ...]
    confusion: IntArray
    triggered_confusion: IntArray | None
    outcomes: Outcomes | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """How many test images there are."""
        return self.acc.n

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return a plain form ready for a record, without the outcomes (see ``Outcomes.pack``)."""
        shown = self.triggered_confusion
        return {
            "n": self.n,
            "classes": list(self.classes),
            "acc": self.acc.to_json(),
            "asr": None if self.asr is None else self.asr.to_json(),
            "ra": None if self.ra is None else self.ra.to_json(),
            "target": self.target,
            "target_recall": None if self.target_recall is None else self.target_recall.to_json(),
            "per_class_recall": [rate.to_json() for rate in self.per_class_recall],
            "confusion": self.confusion.tolist(),
            "triggered_confusion": None if shown is None else shown.tolist(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation :meth:`to_json` wrote, without outcomes.

        Raises:
            DataError: ``plain`` is not such a form.
        """
        try:
            k = len(plain["classes"])
            shown = plain["triggered_confusion"]
            return cls(
                classes=tuple(str(name) for name in plain["classes"]),
                acc=Rate.from_json(plain["acc"]),
                asr=_maybe_rate(plain["asr"]),
                ra=_maybe_rate(plain["ra"]),
                target=None if plain["target"] is None else int(plain["target"]),
                target_recall=_maybe_rate(plain["target_recall"]),
                per_class_recall=tuple(Rate.from_json(r) for r in plain["per_class_recall"]),
                confusion=np.array(plain["confusion"], dtype=np.int64).reshape(k, k),
                triggered_confusion=None
                if shown is None
                else np.array(shown, dtype=np.int64).reshape(k, k),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                "an evaluation as Evaluation.to_json writes it",
                got=f"{type(error).__name__}: {error}",
                remedy="The record is damaged or of another version; evaluate the network again.",
            ) from error


def _maybe_rate(plain: Mapping[str, Any] | None) -> Rate | None:
    return None if plain is None else Rate.from_json(plain)


def summarize(
    outcomes: Outcomes, classes: tuple[str, ...], *, target: int | None = None
) -> Evaluation:
    """Return the figures that follow from what was said of each image.

    Args:
        outcomes: of ``n`` images.
        classes: names of the classes, in the order of the network's outputs.
        target: the target class of an all-to-one attack, where one is known.

    Raises:
        DataError: a label, a prediction or the target names no class.
    """
    k = len(classes)
    # Hand-made or unpacked outcomes come this way too, and bincount would misplace what is off.
    named = [outcomes.labels, outcomes.clean]
    if outcomes.triggered is not None:
        named.append(outcomes.triggered[outcomes.shown])
    if target is not None:
        named.append(np.array([target]))
    if any(a.size and (a.min() < 0 or a.max() >= k) for a in named):
        raise DataError(
            f"labels, predictions and target from 0 to {k - 1} ({k} classes)",
            got="one outside",
            remedy="Give the classes of the network the outcomes are from.",
        )
    confusion = _confusion(outcomes.labels, outcomes.clean, k)
    recall = tuple(
        Rate(int(hits), int(n))
        for hits, n in zip(np.diagonal(confusion), confusion.sum(axis=1), strict=True)
    )
    asr = ra = shown_confusion = None
    if outcomes.triggered is not None:
        shown = outcomes.shown
        asr = Rate.of(outcomes.success[shown])
        ra = Rate.of(outcomes.recovered[shown])
        shown_confusion = _confusion(outcomes.labels[shown], outcomes.triggered[shown], k)
    return Evaluation(
        classes=classes,
        acc=Rate.of(outcomes.correct),
        asr=asr,
        ra=ra,
        target=target,
        target_recall=None if target is None else recall[target],
        per_class_recall=recall,
        confusion=confusion,
        triggered_confusion=shown_confusion,
        outcomes=outcomes,
    )


def _confusion(labels: IntArray, predicted: IntArray, k: int) -> IntArray:
    return np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k).astype(np.int64)
