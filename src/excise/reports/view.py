"""What the page of a repair shows, in the order it shows it, before it becomes HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from excise.reports import figures, formats
from excise.reports.embedding import Embedded, embedded
from excise.reports.record import Check, Evaluation, Figure, Picture, Record, doubts
from excise.reports.recovered import recovered, strongest
from excise.reports.table import table_of

__all__ = ["view"]

_NUMBERED = 16  # up to this many classes a confusion matrix shows its numbers
_DRAWN = 120  # up to this many it is drawn; beyond, the most frequent mistakes are listed
_MISTAKES = 40  # the longest list of them
_ROWS = 200  # the longest table of rounds or epochs; the rest stands in the record

#: status -> (word, icon). A status that is not known shows as its own word.
_STATUS = {
    "repaired": ("Repaired", "good"),
    "incomplete": ("Incomplete", "warning"),
    "harmed": ("Harmed", "bad"),
    "unchanged": ("Unchanged", "same"),
    "clean-only": ("Clean images only", "unknown"),
    "void": ("Void", "bad"),
}
_LEVELS = {
    "note": ("Note", "note"),
    "warning": ("Warning", "warning"),
    "problem": ("Problem", "bad"),
}


def view(record: Record, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what the templates need to know, by name."""
    return {
        "record": record,
        "title": _title(record),
        "verdict": _verdict(record),
        "facts": _facts(record),
        "tiles": _tiles(record),
        "table": table_of(record),
        "shown": _pictures(record, pictures),
        "recovered_how": "Changes that lead to a class, found without being told the trigger; the "
        "defense worked against these.",
        "triggers": recovered(record.triggers or [], record.tried_on, pictures),
        "curve": _curve(record),
        "filters": _filters(record),
        "confusion": _confusion(record),
        "checks": _checks(record),
        "audit": _audit(record),
        "run": _run(record),
        "settings": list(_flat(record.spec or {})),
        "stages": _stages(record.history or []),
    }


# --- The head and the verdict -----------------------------------------------------------------


@dataclass(frozen=True)
class _Word:
    """A finding's word and icon; the icon's name is also its color's."""

    word: str
    icon: str


@dataclass(frozen=True)
class _Verdict(_Word):
    sentence: str


def _verdict(record: Record) -> _Verdict:
    status, sentence = record.verdict.status, record.verdict.sentence
    word, icon = _STATUS.get(status, (status.capitalize() or "No verdict", "unknown"))
    if icon == "same" and record.verdict.ok is False:
        icon = "warning"
    rest = sentence.removeprefix(f"{word}: ")  # the word stands above the sentence already
    return _Verdict(word, icon, rest[:1].upper() + rest[1:])


def _title(record: Record) -> str:
    network = record.setting("model", "arch") or "network"
    return f"{_verdict(record).word}: {network} · Excise repair report"


def _facts(record: Record) -> list[tuple[str, str]]:
    """Return the few facts that say which repair this is."""
    defense, inverter = record.setting("defense", "name"), record.setting("defense", "inverter")
    inverter = inverter.get("name") if isinstance(inverter, Mapping) else inverter
    attack = record.setting("model", "attack", "name")
    facts = [
        ("Network", record.setting("model", "arch")),
        ("Data", record.source),
        ("Attack", attack),
        ("Measured with", _aim(record)),
        ("Defense", f"{defense} with {inverter}" if defense and inverter else defense),
        ("Budget", _budget(record)),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _aim(record: Record) -> str | None:
    """Return what the trigger that was measured with is to do; None where there was none."""
    if record.before.asr is None:
        return None
    if record.target is None:
        return "a trigger without a single target class"
    return f"a trigger for class {record.classes[record.target]}"


def _budget(record: Record) -> str | None:
    spc = record.setting("spc")
    if not isinstance(spc, int):
        return None
    return "1 clean image per class" if spc == 1 else f"{spc:,} clean images per class"


@dataclass(frozen=True)
class _Tile:
    name: str
    before: str
    after: str
    hints: list[str]


def _tiles(record: Record) -> list[_Tile]:
    tiles = []
    floor, untold = record.floor, _recovered_tile(record)
    for key, name, hint in (
        ("acc", "Clean accuracy", "higher is better"),
        ("asr", "Attack success rate", "lower is better"),
        ("ra", "Recovery accuracy", "higher is better"),
    ):
        old, new = getattr(record.before, key), getattr(record.after, key)
        if new is None and untold:
            continue
        twin = getattr(floor, key, None)
        tiles.append(
            _Tile(
                name,
                formats.percent(old.value) if old else "",
                formats.percent(new.value) if new else "not measured",
                [hint, f"clean twin {formats.percent(twin.value)}"] if twin else [hint],
            )
        )
    if untold:
        tiles.append(untold)
    if record.filters:
        cut, total = _cut(record)
        share = [f"of {total:,}", formats.percent(cut / total)]
        tiles.append(_Tile("Filters cut", "", f"{cut:,}", share))
    return tiles


def _recovered_tile(record: Record) -> _Tile | None:
    """Return how often the strongest recovered trigger works, where nobody tells the true one."""
    best = strongest(record.triggers or [])
    if best is None or record.before.asr is not None:
        return None
    before, after = best
    new = formats.percent(after.value) if after else "not measured"
    hints = ["lower is better", f"of {before.n:,} images of other classes"]
    return _Tile("Recovered trigger works", formats.percent(before.value), new, hints)


def _cut(record: Record) -> tuple[int, int]:
    layers = record.filters or []
    return sum(len(x.cut) for x in layers), sum(x.filters for x in layers)


@dataclass(frozen=True)
class _Finding:
    name: str
    level: _Word
    message: str


def _checks(record: Record) -> list[_Finding] | None:
    found: list[Check] = doubts(record)
    if record.checks is None and not found:
        return None
    order = {"problem": 0, "warning": 1, "note": 2}
    every = sorted([*found, *(record.checks or [])], key=lambda c: order.get(c.level, 1))
    return [
        _Finding(c.name, _Word(*_LEVELS.get(c.level, (c.level, "warning"))), c.message)
        for c in every
    ]


# --- The audit ---------------------------------------------------------------------------------

#: name -> (title, what is done)
_ATTACKS = {
    "invert-again": (
        "Invert again",
        "Does the trigger recovered before the repair still work, and can a new one be found?",
    ),
    "reactivation": (
        "Re-activation",
        "Does a faint pattern on top of the trigger wake the backdoor again?",
    ),
    "relearning": (
        "Relearning",
        "Does the network learn its old trigger faster than a new one of the same size?",
    ),
}
_PASSED = {
    True: _Word("Withstood", "good"),
    False: _Word("Not withstood", "bad"),
    None: _Word("Cannot be told", "unknown"),
}


@dataclass(frozen=True)
class _Attacked:
    title: str
    question: str
    level: _Word
    sentence: str
    values: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class _Audited:
    told: bool
    attacks: list[_Attacked]


def _audit(record: Record) -> _Audited | None:
    if record.audit is None:
        return None
    return _Audited(
        record.audit.told,
        [
            _Attacked(
                *_ATTACKS.get(one.name, (one.name, "")),
                _PASSED[one.passed],
                one.sentence,
                [(name[:1].upper() + name[1:], *_figure(f)) for name, f in one.values.items()],
            )
            for one in record.audit.findings
        ],
    )


def _figure(figure: Figure) -> tuple[str, str, str]:
    """Return value, interval and base of a figure of an audit, as a person reads them."""
    if figure.most is not None:
        texts = [
            f"{v:,.0f}" if v is not None else f"more than {figure.most:,}"
            for v in (figure.value, figure.low, figure.high)
        ]
        return texts[0], f"{texts[1]} to {texts[2]}", "steps"
    if figure.value is None or figure.low is None or figure.high is None:
        return "not measured", "", "no images"
    if figure.n is not None:
        interval = f"{formats.interval_text(figure.low, figure.high)}%"
        return formats.percent(figure.value), interval, f"{figure.n:,} images"
    return f"{figure.value:.2f}", f"{figure.low:.2f} to {figure.high:.2f}", ""


# --- Pictures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    when: str
    said: str
    meaning: str
    icon: str


@dataclass(frozen=True)
class _Shown:
    label: str
    wanted: str | None
    images: list[Embedded]
    answers: list[_Answer]


def _pictures(record: Record, files: Mapping[str, bytes]) -> list[_Shown]:
    return [_shown(picture, files, record.residual_scale) for picture in record.pictures or []]


def _shown(picture: Picture, files: Mapping[str, bytes], scale: float | None) -> _Shown:
    times = f" ×{scale:g}" if scale is not None and scale != 1 else ""
    images = [
        _image("clean", f"An image of {picture.label}, clean", picture.clean, files),
        _image("with trigger", "The same with the trigger", picture.triggered, files),
        _image(f"difference{times}", f"The difference of the two{times}", picture.residual, files),
    ]
    answers = [
        _answer(when, said, picture)
        for when, said in (("before", picture.before), ("after", picture.after))
        if said is not None
    ]
    return _Shown(picture.label, picture.wanted, images, answers)


def _answer(when: str, said: str, picture: Picture) -> _Answer:
    if said == picture.label:
        return _Answer(when, said, "right", "good")
    if said == picture.wanted:
        return _Answer(when, said, "what the attacker wants", "bad")
    return _Answer(when, said, "wrong", "warning")


def _image(caption: str, alt: str, name: str | None, files: Mapping[str, bytes]) -> Embedded:
    return embedded(caption, alt, files.get(name, b"") if name else b"")


# --- The curve and the filters ----------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """A table of whatever a history holds."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int = 0


@dataclass(frozen=True)
class _Curve:
    wide: Markup
    narrow: Markup
    words: str
    images: int | None
    table: _Table


def _curve(record: Record) -> _Curve | None:
    curve = record.curve
    if not curve:
        return None
    rows = [
        [
            f"{r.round:,}",
            "as given" if r.layer is None else r.layer,
            "" if r.index is None else f"{r.index:,}",
            *("" if v is None else formats.percent(v) for v in (r.acc, r.asr, r.ra)),
            "kept" if r.kept else "undone",
        ]
        for r in curve
    ]
    columns = ["round", "layer", "filter", "ACC", "ASR", "RA", ""]
    return _Curve(
        figures.pruning_curve(curve, record.after, name="curve-wide"),
        figures.pruning_curve(curve, record.after, name="curve-narrow", narrow=True),
        figures.curve_summary(curve, record.after),
        curve[-1].n,
        _thin("Round by round", columns, rows),
    )


def _thin(name: str, columns: list[str], rows: list[list[str]]) -> _Table:
    """Return a table of at most ``_ROWS`` rows, evenly chosen, the last one among them."""
    step = -(-len(rows) // _ROWS)
    kept = rows if step <= 1 else [*rows[: len(rows) - 1 : step], rows[-1]]
    return _Table(name, columns, kept, len(rows) - len(kept))


@dataclass(frozen=True)
class _Fold:
    """Layers that follow one another in the filter map; untouched ones may be folded away."""

    strips: list[figures.Strip]
    folded: bool

    @property
    def filters(self) -> int:
        return sum(s.filters for s in self.strips)


@dataclass(frozen=True)
class _Filters:
    folds: list[_Fold]
    cut: int
    total: int
    layers: int
    touched: list[figures.Strip]
    largest_cell: int


def _filters(record: Record) -> _Filters | None:
    if not record.filters:
        return None
    strips = figures.filter_strips(record.filters)
    touched = [s for s in strips if s.cut]
    folds: list[_Fold] = []
    for fold in _runs(strips):
        # Long runs of untouched layers say little and would hide the others in a deep network.
        folds.append(_Fold(fold, len(strips) > 40 and len(fold) > 2 and not fold[0].cut))
    return _Filters(folds, *_cut(record), len(strips), touched, max(s.per_cell for s in strips))


def _runs(strips: Sequence[figures.Strip]) -> Iterator[list[figures.Strip]]:
    """Yield neighbors together that are all touched or all untouched."""
    run: list[figures.Strip] = []
    for strip in strips:
        if run and bool(run[-1].cut) != bool(strip.cut):
            yield run
            run = []
        run.append(strip)
    if run:
        yield run


# --- Confusion --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """One confusion matrix: as numbers, as a drawing, or only as its most frequent mistakes."""

    title: str
    rows: list[list[int]]
    sums: list[int]
    drawing: Markup | None
    numbers: bool
    mistakes: list[tuple[int, int, int, int]]
    more: int


@dataclass(frozen=True)
class _Pair:
    name: str
    matrices: list[_Matrix]


@dataclass(frozen=True)
class _Confusion:
    pairs: list[_Pair]
    classes: list[str]
    target: int | None
    long_names: bool
    drawn: bool


def _confusion(record: Record) -> _Confusion | None:
    pairs = []
    for name, key in (
        ("Images with the trigger", "triggered_confusion"),
        ("Clean images", "confusion"),
    ):
        matrices = [
            _matrix(record, evaluation, key, f"{name}, {when}")
            for when, evaluation in (("before", record.before), ("after", record.after))
            if getattr(evaluation, key)
        ]
        if matrices:
            pairs.append(_Pair(name, matrices))
    if not pairs:
        return None
    classes = record.classes
    return _Confusion(
        pairs,
        classes,
        record.target,
        any(len(c) > 3 for c in classes),
        _NUMBERED < len(classes) <= _DRAWN,
    )


def _matrix(record: Record, evaluation: Evaluation, key: str, title: str) -> _Matrix:
    rows: list[list[int]] = getattr(evaluation, key)
    numbers = len(rows) <= _NUMBERED
    drawing = None
    if _NUMBERED < len(rows) <= _DRAWN:
        name = title.lower().replace(",", "").replace(" ", "-")
        drawing = figures.heat_map(
            rows, evaluation.classes, name=name, title=title, target=record.target
        )
    every = figures.mistakes(rows)
    left_out = max(0, len(every) - _MISTAKES)
    sums = [sum(row) for row in rows]
    return _Matrix(title, rows, sums, drawing, numbers, every[:_MISTAKES], left_out)


# --- How it was run ---------------------------------------------------------------------------


def _run(record: Record) -> list[tuple[str, str]]:
    """Return how the repair was run, as names and values; what is not known is left out."""
    seconds = record.seconds or {}
    spent = [
        f"{name} {formats.duration(s)}"
        for name, s in seconds.items()
        if s is not None and name != "total"
    ]
    total = seconds.get("total")
    if total is not None:
        spent.insert(0, f"{formats.duration(total)} in all")
    environment = [f"{k} {v}" for k, v in (record.environment or {}).items() if v is not None]
    data = record.setting("data")
    data = data if isinstance(data, Mapping) else {}
    size = record.setting("model", "input_size")
    lines = [
        *_facts(record),
        (
            "Classes",
            f"{len(record.classes):,}: {formats.short_list(record.classes, 12)}"
            if record.classes
            else None,
        ),
        ("Input", " × ".join(map(str, size)) + " pixels" if isinstance(size, list) else None),
        ("Attack", None if record.setting("model", "attack", "name") else "not known to Excise"),
        ("Defender’s images", data.get("pool")),
        ("Training images", _counts(data.get("train_per_class"))),
        ("Validation images", _counts(data.get("validation_per_class"))),
        ("Measured on", f"{record.after.acc.n:,} images"),
        ("Data fingerprint", data.get("fingerprint")),
        ("Seed", record.setting("seed")),
        ("Time", ", ".join(spent)),
        (
            "Peak memory",
            None if record.peak_memory_mib is None else formats.memory(record.peak_memory_mib),
        ),
        ("Made with", ", ".join(environment)),
        ("Made at", formats.when(record.created) if record.created else None),
    ]
    return [(name, str(value)) for name, value in lines if value not in (None, "")]


def _counts(per_class: Any) -> str | None:
    if not isinstance(per_class, list) or not all(isinstance(n, int) for n in per_class):
        return None
    if not per_class:
        return None
    low, high, total = min(per_class), max(per_class), sum(per_class)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{each} of every class, {total:,} in all"


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting of a spec with its dotted name."""
    for key, value in settings.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, formats.short_list(value, 60)
        else:
            yield name, "none" if value is None else str(value)


def _stages(history: Sequence[Mapping[str, Any]]) -> list[_Table]:
    """Return a table for each stage of the history, columns in the order they first appear."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in history:
        stages.setdefault(str(row.get("stage", "rounds")), []).append(row)
    tables = []
    for stage, rows in stages.items():
        columns = list(dict.fromkeys(k for row in rows for k in row if k != "stage"))
        cells = [[_cell(row.get(c)) for c in columns] for row in rows]
        tables.append(_thin(f"History: {stage}", [c.replace("_", " ") for c in columns], cells))
    return tables


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
