"""How a report reads a record: every part it uses, checked once, before anything is drawn.

The record is plain JSON. What a report does not use may hold anything; what it does use must
have the stated type and range, or a :class:`~excise.errors.DataError` names the place.

Conventions the record keeps: fractions in [0, 1]; a confusion matrix has a row for each true
class and a column for each predicted one; a difference is *after minus before*.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from excise.errors import DataError

__all__ = [
    "VERSION",
    "Attack",
    "Audit",
    "Check",
    "Count",
    "Evaluation",
    "Figure",
    "Fraction",
    "Interval",
    "Layer",
    "Measured",
    "Part",
    "Picture",
    "Rate",
    "Record",
    "Recovered",
    "Round",
    "Tried",
    "TriedOn",
    "doubts",
    "read_record",
    "record_json",
]

#: The newest version of a record that this code understands.
VERSION = 1

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Matrix = list[list[Count]]


class Part(BaseModel):
    """A part of a record: what a page does not use may hold anything, the rest is checked."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class Rate(Part):
    """A fraction of ``n`` images, with its 95 % interval."""

    value: Fraction
    low: Fraction
    high: Fraction
    count: Count
    n: Count


class Interval(Part):
    """A number that is not a fraction of images, with its 95 % interval."""

    value: float
    low: float
    high: float


def _none_if_empty(rate: Any) -> Any:
    """Read a rate of no images, which has no value, as one that was not measured."""
    return None if isinstance(rate, Mapping) and rate.get("value") is None else rate


Measured = Annotated[Rate | None, BeforeValidator(_none_if_empty)]


class Evaluation(Part):
    """What one network does on the test images, clean and triggered."""

    acc: Rate
    asr: Measured = None
    ra: Measured = None
    target_recall: Measured = None
    target: Count | None = None
    confusion: Matrix | None = None
    triggered_confusion: Matrix | None = None
    classes: list[str] = []

    @model_validator(mode="after")
    def _fits_its_classes(self) -> Self:
        for matrix in (self.confusion, self.triggered_confusion):
            if matrix is not None and {len(matrix), *map(len, matrix)} != {len(self.classes)}:
                raise ValueError(
                    f"a confusion matrix must be square, one row for each of the "
                    f"{len(self.classes)} classes"
                )
        return self


class Comparison(Part):
    """The repaired network beside the given one; differences are after minus before."""

    der: Interval | None = None
    delta_acc: Interval | None = None
    delta_asr: Interval | None = None
    delta_ra: Interval | None = None
    delta_target_recall: Interval | None = None


class Round(Part):
    """One point of the pruning curve; round 0 is the network as given."""

    round: Count
    layer: str | None = None
    index: int | None = None
    acc: Fraction | None = None
    asr: Fraction | None = None
    ra: Fraction | None = None
    kept: bool = True
    n: Count | None = None


class Layer(Part):
    """One convolution: how many output filters it had, and which of them were cut."""

    layer: str
    filters: Annotated[int, Field(ge=1)]
    cut: list[Count] = []

    @model_validator(mode="after")
    def _has_what_was_cut(self) -> Self:
        if self.cut and max(self.cut) >= self.filters:
            raise ValueError(f"filter {max(self.cut)} was cut from a layer of {self.filters}")
        if len(set(self.cut)) != len(self.cut):
            raise ValueError("the same filter was cut twice")
        return self


class Check(Part):
    """What the evaluation found out about itself."""

    name: str
    level: str
    message: str


class Verdict(Part):
    """The outcome as a word and as a sentence."""

    status: str
    sentence: str
    ok: bool | None = None


class Figure(Part):
    """A figure of an audit: a rate of ``n`` images, a number, or steps of at most ``most``."""

    value: float | None
    low: float | None
    high: float | None
    n: Count | None = None
    most: Count | None = None

    @model_validator(mode="after")
    def _is_known_or_counts(self) -> Self:
        if self.most is None and self.n != 0 and None in (self.value, self.low, self.high):
            raise ValueError("a figure that does not count steps must have a value and an interval")
        return self


class Attack(Part):
    """What one attack on the repaired network came to."""

    name: str
    passed: bool | None
    sentence: str
    values: dict[str, Figure] = {}
    threshold: float | None = None
    seconds: float | None = None


class Audit(Part):
    """All attacks on the repaired network, with the defender's images."""

    findings: list[Attack]
    told: bool = False


class Picture(Part):
    """One test image: names of PNG files, its class, and what the network said."""

    label: str
    wanted: str | None = None
    clean: str | None = None
    triggered: str | None = None
    residual: str | None = None
    before: str | None = None
    after: str | None = None


class Tried(Picture):
    """One image a recovered trigger was tried on: what is said without it, with it, repaired."""

    before: str
    after: str
    repaired: str | None = None


class Recovered(Part):
    """A recovered trigger, and what it does to images of other classes than its own."""

    kind: str
    class_: str | None = Field(alias="class")
    size: float | None
    explained: float | None = None
    rate: Measured
    without: Measured
    repaired: Measured = None
    residual_scale: float
    shown: list[Tried]


class TriedOn(Part):
    """How many images recovered triggers were tried on, and whether nothing had used them."""

    images: Count
    unseen: bool


class Record(Part):
    """The record of one repair."""

    version: int
    kind: Literal["repair"]
    verdict: Verdict
    before: Evaluation
    after: Evaluation
    pruned: Evaluation | None = None
    floor: Evaluation | None = None
    comparison: Comparison | None = None
    spec: dict[str, Any] | None = None
    curve: list[Round] | None = None
    filters: list[Layer] | None = None
    history: list[dict[str, Any]] | None = None
    assumed: list[str] | None = None
    notes: list[str] | None = None
    checks: list[Check] | None = None
    audit: Audit | None = None
    seconds: dict[str, float | None] | None = None
    peak_memory_mib: float | None = None
    environment: dict[str, Any] | None = None
    command: str | None = None
    created: str | None = None
    pictures: list[Picture] | None = None
    residual_scale: float | None = None
    triggers: list[Recovered] | None = None
    tried_on: TriedOn | None = None

    @property
    def classes(self) -> list[str]:
        """The names of the network's outputs, in order."""
        return self.after.classes or self.before.classes

    @property
    def target(self) -> int | None:
        """The one class an attacker steers every image to, where there is one."""
        target = self.after.target
        if target is None:
            target = self.setting("model", "attack", "target")
        known = isinstance(target, int) and 0 <= target < len(self.classes)
        return target if known else None

    @property
    def source(self) -> Any:
        """The name of the data, wherever the spec has it."""
        return self.setting("data", "source") or self.setting("source")

    def setting(self, *path: str) -> Any:
        """Return what the spec holds at ``path``, None where it holds nothing."""
        found: Any = self.spec
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


def read_record(record: Mapping[str, Any]) -> Record:
    """Return the parts of ``record`` that a report uses.

    Raises:
        DataError: it is not the record of a repair, or of a newer version, or broken.
    """
    version = record.get("version") if isinstance(record, Mapping) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DataError(
            "the record of a repair",
            got="something that states no record version",
            remedy="Give a record that `excise repair` wrote.",
        )
    if version > VERSION:
        raise DataError(
            f"a record of version {VERSION} or older",
            got=f"version {version}",
            remedy="Update Excise: a newer one wrote this record.",
        )
    if record.get("kind") != "repair":
        raise DataError(
            "the record of a repair",
            got=f"a record of kind {str(record.get('kind'))[:60]!r}",
            remedy="Give a record that `excise repair` wrote.",
        )
    remedy = "The record is damaged or was edited; run the repair again."
    return validated(Record, record, "the record of a repair", remedy)


P = TypeVar("P", bound=BaseModel)


def validated(kind: type[P], record: Mapping[str, Any], what: str, remedy: str) -> P:
    """Return the parts of ``record`` that ``kind`` names.

    Args:
        kind: what the record has to be.
        record: somebody's.
        what: how a person calls it, "the record of a scan".
        remedy: what to do where it cannot be read.

    Raises:
        DataError: a part is missing or of another type or range; the message says where.
    """
    try:
        return kind.model_validate(dict(record))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise DataError(
            f"{what}, every part of its own type and range",
            got=f"at {place[:120]}: {first['msg'][:200]}",
            remedy=remedy,
        ) from error


def versioned(
    kind: type[P], record: Mapping[str, Any], what: str, remedy: str, *, version: int
) -> P:
    """Return the parts of ``record``, as :func:`validated` does, unless a newer Excise wrote it.

    Raises:
        DataError: it is of a version above ``version``, or cannot be read.
    """
    if isinstance(said := record.get("version"), int) and said > version:
        raise DataError(
            f"{what} of version {version}",
            got=f"version {said}",
            remedy="Update Excise: a newer one wrote this record.",
        )
    return validated(kind, record, what, remedy)


def record_json(record: Mapping[str, Any]) -> str:
    """Return ``record`` as JSON in pure ASCII, on one line.

    Raises:
        DataError: it holds something that JSON has no word for, such as NaN.
    """
    try:
        _refuse_depth(record)
        return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            "a record that JSON can hold",
            got=str(error)[:200],
            remedy="Give plain dicts, lists, strings, finite numbers, booleans and None.",
        ) from error


def _refuse_depth(value: Any, most: int = 40) -> None:
    """Raise ValueError if a value is nested more deeply than any real record."""
    level = [value]
    for _ in range(most):
        inner: list[Any] = []
        for v in level:
            inner += v.values() if isinstance(v, Mapping) else v if isinstance(v, list) else ()
        level = inner
    if level:
        raise ValueError(f"values nested more than {most} deep")


def doubts(record: Record) -> list[Check]:
    """Return where the record contradicts itself; a report shows them among the checks."""
    return [Check(name="record", level="problem", message=m) for m in _contradictions(record)]


def _contradictions(record: Record) -> Iterator[str]:
    for part in ("before", "pruned", "after", "floor"):
        evaluation: Evaluation | None = getattr(record, part)
        if evaluation is None:
            continue
        for name in ("acc", "asr", "ra", "target_recall"):
            rate: Rate | None = getattr(evaluation, name)
            if rate is None:
                continue
            if rate.n and abs(rate.value - rate.count / rate.n) > 1e-6:
                yield (
                    f"{part}.{name} is stated as {rate.value:.6g}, but {rate.count} of {rate.n} "
                    f"is {rate.count / rate.n:.6g}."
                )
            if not rate.low - 1e-9 <= rate.value <= rate.high + 1e-9:
                yield f"{part}.{name} lies outside its own interval."
        if (
            evaluation.asr
            and evaluation.ra
            and evaluation.asr.value + evaluation.ra.value > 1.000001
        ):
            yield f"In {part}, ASR and RA add up to more than all images."
    for name in ("acc", "asr", "ra", "target_recall"):
        stated = getattr(record.comparison, f"delta_{name}", None)
        old, new = getattr(record.before, name), getattr(record.after, name)
        if stated and old and new and abs(stated.value - (new.value - old.value)) > 1e-6:
            yield (
                f"comparison.delta_{name} is stated as {stated.value:.6g}, but after minus before "
                f"is {new.value - old.value:.6g}; its interval is left out."
            )
