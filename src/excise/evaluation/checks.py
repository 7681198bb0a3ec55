"""The evaluation suspects itself: what could make its figures mean less than they seem to.

Each check is a small function that returns what it found, or nothing. :func:`check` runs all of
them; the messages are for the person who reads the record. Source: ``design.md``, "Experiments",
and docs/conventions.md, "Floors".

A difference counts here only where even the friendly end of its interval lies beyond the stated
margin, so that a small test set does not cry wolf; that it is small is a finding of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from excise.errors import DataError
from excise.evaluation._words import percent, points, rate
from excise.evaluation.comparison import Comparison
from excise.evaluation.hashing import fingerprints
from excise.evaluation.metrics import Rate
from excise.evaluation.outcomes import Evaluation
from excise.types import DefenderData, Edits, LabelledImages

__all__ = [
    "VOIDING",
    "Finding",
    "accuracy_collapsed",
    "backdoor_never_took",
    "check",
    "class_forgotten",
    "few_images",
    "floor_is_high",
    "left_in_training_mode",
    "near_chance",
    "not_as_planted",
    "not_recovered",
    "nothing_changed",
    "same_predictions",
    "shares_weights",
    "splits_overlap",
    "target_class_counted",
    "target_forgotten",
]

Level = Literal["note", "warning", "problem"]
_LEVELS: tuple[Level, ...] = ("problem", "warning", "note")
Findings = tuple["Finding", ...]

#: ASR under which a planted backdoor took only in part.
TOOK = 0.5
#: A clean twin with a higher ASR than this is no floor to stand on.
HIGH_FLOOR = 0.2
#: ASR under which a repair is suspected of having been bought too dearly.
LOW_ASR = 0.1
#: Losses beyond this, in points of a hundred, count as a collapse or as not recovered.
COLLAPSE = 0.10
#: A target class may lose this much recall beyond its interval.
FORGOTTEN = 0.03
#: Wider intervals than plus or minus this are called out.
WIDE = 0.05
#: Accuracy this little above chance is called chance.
CHANCE_MARGIN = 0.05


@dataclass(frozen=True)
class Finding:
    """One reason to trust a figure less.

    Args:
        name: which check, in kebab case.
        level: ``"problem"`` makes the figures void or the repair suspect, ``"warning"`` weakens
            them, ``"note"`` is good to know.
        message: what was found, in numbers, and what to do about it.
    """

    name: str
    level: Level
    message: str

    @property
    def is_problem(self) -> bool:
        """Whether what it was found in can no longer be relied on."""
        return self.level == "problem"

    def to_json(self) -> dict[str, str]:
        """Return ``{"name", "level", "message"}``, ready for a record."""
        return {"name": self.name, "level": self.level, "message": self.message}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Finding:
        """Return the finding :meth:`to_json` wrote.

        Raises:
            DataError: ``plain`` is not such a form.
        """
        if set(plain) != {"name", "level", "message"} or plain["level"] not in _LEVELS:
            raise DataError(
                'a finding {"name", "level", "message"} of level note, warning or problem',
                got=f"{dict(plain)!r}",
                remedy="Write it with Finding.to_json.",
            )
        return cls(str(plain["name"]), plain["level"], str(plain["message"]))


def check(
    before: Evaluation,
    after: Evaluation,
    comparison: Comparison,
    *,
    floor: Evaluation | None = None,
    planted_asr: float | None = None,
    test: LabelledImages | None = None,
    defender: DefenderData | None = None,
    edits: Edits = (),
    model_before: nn.Module | None = None,
    model_after: nn.Module | None = None,
) -> Findings:
    """Return what every check found, gravest first. What is not given is not checked.

    Args:
        before: the network as it was given.
        after: the repaired network.
        comparison: of the two, and with the floor if there is one.
        floor: the clean twin under the same trigger.
        planted_asr: the ASR the victim's card states, in [0, 1].
        test: the test images both were evaluated on.
        defender: the images the defense was given.
        edits: what the defense says it changed.
        model_before: the network as it was given.
        model_after: the repaired network.
    """
    found = [
        *near_chance(before),
        *backdoor_never_took(before, floor),
        *not_as_planted(before, planted_asr),
        *floor_is_high(floor),
        *target_class_counted(before),
        *target_class_counted(after, "after the repair"),
        *splits_overlap(test, defender),
        *left_in_training_mode(model_before, "the given network", "warning"),
        *left_in_training_mode(model_after, "the repaired network", "problem"),
        *shares_weights(model_before, model_after),
        *nothing_changed(before, after, edits, model_before, model_after),
        *accuracy_collapsed(before, after, comparison),
        *target_forgotten(after, comparison),
        *class_forgotten(before, after),
        *not_recovered(after, comparison),
        *few_images(before, after),
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: _LEVELS.index(finding.level)))


def near_chance(before: Evaluation) -> Findings:
    """A network that hardly knows its classes: wrong class map, normalization or weights."""
    k, acc = before.num_classes, before.acc
    if k < 2 or acc.value is None:
        return ()
    remedy = "Check the class map, the normalization and the input size."
    if acc.value <= 1 / k + CHANCE_MARGIN:
        said = f"its accuracy on clean images is {rate(acc)}, and chance {percent(1 / k)}"
    elif np.count_nonzero(before.confusion.sum(0)) == 1 < np.count_nonzero(before.confusion.sum(1)):
        said = "it calls every clean image the same"
    elif acc.low <= 1 / k:
        return _one(
            "near-chance",
            "warning",
            f"Accuracy before any work, {rate(acc)}, cannot be told from chance "
            f"({percent(1 / k)}). {remedy}",
        )
    else:
        return ()
    return _one(
        "near-chance",
        "problem",
        f"The network hardly knows its classes before any work: {said}. {remedy}",
    )


def backdoor_never_took(before: Evaluation, floor: Evaluation | None = None) -> Findings:
    """A backdoor that hardly works: there is little to remove, and any defense looks good."""
    asr = before.asr
    if asr is None or asr.value is None:
        return ()
    k = before.num_classes
    clean = None if floor is None else floor.asr
    if clean is not None and asr.low <= clean.high:
        reference = f"no higher than a network never poisoned has ({rate(clean)})"
    elif clean is None and asr.low <= 1 / k:
        reference = f"no higher than chance ({percent(1 / k)})"
    elif asr.value < TOOK:
        return _one(
            "backdoor-never-took",
            "warning",
            f"The backdoor took only in part: ASR before the repair is {rate(asr)}. "
            "A low ASR after it says less.",
        )
    else:
        return ()
    return _one(
        "backdoor-never-took",
        "problem",
        f"The backdoor never took: ASR before the repair is {rate(asr)}, {reference}. "
        "Nothing can be said of the defense; check trigger and target, or plant it again.",
    )


def not_as_planted(before: Evaluation, planted_asr: float | None) -> Findings:
    """An ASR other than the victim's card states: another trigger, target or preprocessing."""
    asr = before.asr
    if asr is None or asr.value is None or planted_asr is None:
        return ()
    if asr.low - WIDE <= planted_asr <= asr.high + WIDE:
        return ()
    return _one(
        "not-as-planted",
        # Other images than the card's may well give it some points less.
        "problem" if asr.high < planted_asr / 2 else "warning",
        f"ASR before the repair is {rate(asr)}, but {percent(planted_asr)} by the network's card. "
        "Check that trigger, target and test images are the ones it was planted with.",
    )


def floor_is_high(floor: Evaluation | None) -> Findings:
    """A clean twin that the trigger steers as well: it is no floor, and limits built on it slip."""
    if floor is None or floor.asr is None or floor.asr.low <= HIGH_FLOOR:
        return ()
    return _one(
        "floor-is-high",
        "warning",
        f"The trigger steers even the network never poisoned: ASR {rate(floor.asr)}. Either the "
        "trigger shows the target class by itself, or that network is not clean.",
    )


def target_class_counted(evaluation: Evaluation, when: str = "before the repair") -> Findings:
    """Images of the wanted class counted as successes of the attack; that inflates ASR and RA."""
    o = evaluation.outcomes
    if o is None or o.wanted is None:
        return ()
    free = int((o.shown & (o.wanted == o.labels)).sum())
    if not free:
        return ()
    return _one(
        "target-class-counted",
        "problem",
        f"{free} of {int(o.shown.sum())} images counted for ASR {when} truly belong to the class "
        "the attacker wants; they succeed without any backdoor. Leave them out.",
    )


#: Findings whose problem voids a verdict: network and images do not fit, or the figures are of
#: images that the defense worked with, or of something else than the backdoor.
VOIDING = ("near-chance", "unlike-training", "test-images-seen", "not-as-planted")
#: Images that two parts of a data set may share by its makers' oversight.
_REPEATED = 0.01


def splits_overlap(test: LabelledImages | None, defender: DefenderData | None) -> Findings:
    """The same picture in two sets that must not share any, pixel for pixel as 8-bit files."""
    if defender is None:
        return ()
    found: Findings = ()
    train, validation = defender.train, defender.validation
    if validation is not None and (n := _shared(validation, train)):
        found += _one(
            "splits-overlap",
            "problem",
            f"{n} of {len(validation)} validation images are training images too, so that what "
            "the defense decided by them is too friendly. Split without repetition.",
        )
    if test is not None and (n := _shared(defender.everything(), test)):
        found += _one(
            "test-images-seen",
            # Data sets repeat a picture now and then.
            "problem" if n > _REPEATED * len(defender.everything()) else "warning",
            f"{n} of the defender's {len(defender.everything())} images are test images too; the "
            "figures after the repair are too friendly. Draw them from another pool.",
        )
    return found


def _shared(images: LabelledImages, others: LabelledImages) -> int:
    if images.shape != others.shape:
        return 0
    return int(np.isin(fingerprints(images.images), fingerprints(others.images)).sum())


def left_in_training_mode(model: nn.Module | None, which: str, level: Level) -> Findings:
    """A network whose dropout or batch statistics are still in training mode."""
    if model is None:
        return ()
    training = [name or "the whole" for name, m in model.named_modules() if m.training]
    if not training:
        return ()
    return _one(
        "training-mode",
        level,
        f"{len(training)} modules of {which} are in training mode (first: {training[0]}). "
        "The figures here are for eval mode; call model.eval() before using it.",
    )


def shares_weights(before: nn.Module | None, after: nn.Module | None) -> Findings:
    """A repaired network that is, in part, the given one: repairing it changed the original."""
    if before is None or after is None:
        return ()
    given = {t.untyped_storage().data_ptr() for t in _tensors(before).values() if t.numel()}
    both = [
        name
        for name, t in _tensors(after).items()
        if t.numel() and t.untyped_storage().data_ptr() in given
    ]
    if not both:
        return ()
    return _one(
        "shared-weights",
        "problem",
        f"The repaired network shares {len(both)} tensors with the given one (first: {both[0]}); "
        "what was measured before and after may be the same weights. Repair a copy.",
    )


def nothing_changed(
    before: Evaluation,
    after: Evaluation,
    edits: Edits = (),
    model_before: nn.Module | None = None,
    model_after: nn.Module | None = None,
) -> Findings:
    """A defense whose network says the same of every image."""
    if not same_predictions(before, after):
        return ()
    if model_before is not None and model_after is not None:
        old, new = _tensors(model_before), _tensors(model_after)
        same = old.keys() == new.keys() and all(
            old[name].shape == new[name].shape and torch.equal(old[name].cpu(), new[name].cpu())
            for name in old
        )
        if same and edits:
            return _one(
                "nothing-changed",
                "problem",
                f"The defense lists {len(edits)} edits, but every weight is what it was before.",
            )
        if same:
            return _one(
                "nothing-changed",
                "warning",
                "The defense changed nothing: every weight is what it was before.",
            )
    return _one(
        "nothing-changed",
        "note",
        f"Not one prediction on {before.n} test images differs from before the repair.",
    )


def same_predictions(before: Evaluation, after: Evaluation) -> bool:
    """Return whether both say the same of every image, clean and triggered.

    Evaluations read from JSON hold no outcomes; of those the confusion matrices are compared.
    """
    a, b = before.outcomes, after.outcomes
    if a is not None and b is not None:
        return _same(a.clean, b.clean) and _same(a.triggered, b.triggered)
    return _same(before.confusion, after.confusion) and _same(
        before.triggered_confusion, after.triggered_confusion
    )


def accuracy_collapsed(before: Evaluation, after: Evaluation, comparison: Comparison) -> Findings:
    """A low ASR of a network that knows nothing anymore."""
    if comparison.delta_asr is None or comparison.delta_asr.value >= 0:
        return ()
    if comparison.delta_acc.high >= -COLLAPSE:
        return ()
    return _one(
        "accuracy-collapsed",
        "problem",
        f"Accuracy collapsed together with ASR, from {rate(before.acc)} to {rate(after.acc)}; "
        "a network that errs everywhere has a low ASR too.",
    )


def target_forgotten(after: Evaluation, comparison: Comparison) -> Findings:
    """A low ASR bought by never answering with the target class anymore."""
    loss = comparison.target_recall_loss
    if loss is None or after.target is None or loss.low <= 0 or loss.value <= FORGOTTEN:
        return ()
    grave = loss.low > FORGOTTEN
    floored = comparison.target_recall_under_floor is not None
    return _one(
        "target-forgotten",
        "problem" if grave else "warning",
        f"Recall of the target class {after.classes[after.target]!r} is {points(loss)} lower than "
        f"{'in a network never poisoned' if floored else 'before the repair'}: a low ASR "
        f"{'is' if grave else 'may be'} bought by forgetting it.",
    )


def class_forgotten(before: Evaluation, after: Evaluation) -> Findings:
    """A class that lost much of its recall; all there is to see when no target is known."""
    lost = [
        f"{name!r} from {rate(old)} to {rate(new)}"
        for name, old, new in zip(
            before.classes, before.per_class_recall, after.per_class_recall, strict=True
        )
        if old.low > new.high and (old.value or 0) - (new.value or 0) > COLLAPSE
    ]
    if not lost:
        return ()
    return _one(
        "class-forgotten",
        "warning",
        f"Recall of {len(lost)} of {before.num_classes} classes fell far: {'; '.join(lost[:5])}"
        f"{' and others' if len(lost) > 5 else ''}.",
    )


def not_recovered(after: Evaluation, comparison: Comparison) -> Findings:
    """A low ASR with triggered images still not recognized: the trigger does other harm."""
    asr, ra = after.asr, after.ra
    if asr is None or ra is None or asr.value is None or asr.value > LOW_ASR:
        return ()
    under = comparison.ra_under_floor
    if under is not None:
        if under.low <= COLLAPSE:
            return ()
        return _one(
            "not-recovered",
            "problem",
            f"ASR is low, but only {rate(ra)} of the triggered images are recognized, "
            f"{points(under)} fewer than by a network never poisoned. The trigger "
            "no longer steers; it still blinds.",
        )
    o = after.outcomes
    if o is None:
        return ()
    clean = Rate.of(o.correct[o.shown])
    if ra.high >= clean.low - COLLAPSE:
        return ()
    return _one(
        "not-recovered",
        "warning",
        f"ASR is low, but only {rate(ra)} of the triggered images are recognized, against "
        f"{rate(clean)} of the same images without the trigger. Compare with a clean twin: "
        "either the trigger hides the picture, or it still blinds the network.",
    )


def few_images(before: Evaluation, after: Evaluation) -> Findings:
    """Too few test images: an interval wider than plus or minus five points."""
    figures = {
        "accuracy before": before.acc,
        "accuracy after": after.acc,
        "ASR before": before.asr,
        "ASR after": after.asr,
        "RA after": after.ra,
    }
    wide = [
        f"{name} {rate(figure)}"
        for name, figure in figures.items()
        if figure is not None and figure.high - figure.low > 2 * WIDE
    ]
    if not wide:
        return ()
    return _one(
        "few-images",
        "warning",
        f"{before.n} test images are too few for figures within ±{percent(WIDE)}: "
        f"{'; '.join(wide)}. Test on more.",
    )


def _one(name: str, level: Level, message: str) -> Findings:
    return (Finding(name, level, message),)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _same(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
