"""Measure a network: accuracy on clean images, attack success and recovery on triggered ones.

Source: docs/conventions.md, "Metrics". Eval mode, every image once, no augmentation, whole images
counted (never averages of batches). All-to-one attacks do not count images of the target class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from excise.errors import DataError, ModelError, SpecError, TriggerError
from excise.evaluation.hashing import fingerprint
from excise.evaluation.outcomes import NOT_SHOWN, Evaluation, Outcomes, summarize
from excise.types import (
    AllToAll,
    AllToOne,
    Images,
    LabelledImages,
    Labels,
    RecoveredTrigger,
    TargetRule,
    Trigger,
    round_to_8_bits,
)

__all__ = ["eval_mode", "evaluate"]

#: How far outside [0, 1] a trigger may land by rounding alone; half an 8-bit step is 0.002.
_SLACK = 1e-4


def evaluate(
    model: nn.Module,
    test: LabelledImages,
    *,
    trigger: Trigger | None = None,
    target: int | None = None,
    rule: TargetRule | None = None,
    batch_size: int = 500,
) -> Evaluation:
    """Return how a network does on test images, without and with the trigger.

    The network is evaluated where it lies, in eval mode; every module's mode is put back, also
    after an exception. Nothing is drawn at random, and the batch size changes only speed. The
    trigger's picture is rounded to 8 bits, as a file would hold it.

    Args:
        model: images ``(b, c, h, w)`` → logits ``(b, k)``.
        test: ``n`` clean images with true labels; never ones a defense has seen.
        trigger: put on the images for ASR and RA; without it only clean figures are measured.
        target: the class an all-to-one attacker wants, short for ``rule=AllToOne(target)``. A
            recovered trigger that names its own target needs neither.
        rule: which class the attacker wants for which image, and which images count.
        batch_size: images at a time.

    Raises:
        DataError: no images with labels, or a target or rule that does not fit their classes.
        ModelError: logits of another shape, or not numbers.
        SpecError: a batch size below 1, or both a target and another rule.
        TriggerError: a trigger without a target, one that changes the images' shape, type or
            range, or one that changes no pixel of any image.
    """
    if not isinstance(test, LabelledImages):
        raise DataError(
            "test images with their labels, as excise.load_images returns them",
            got=type(test).__name__,
            remedy="Give excise.load_images((images, labels)).",
        )
    if batch_size < 1:
        raise SpecError("a batch size of at least 1", got=str(batch_size), remedy="500 is usual.")
    if target is None and rule is None and isinstance(trigger, RecoveredTrigger):
        target = trigger.target
    rule = _rule(target, rule)
    if trigger is not None and rule is None:
        raise TriggerError(
            "a target class or a target rule beside the trigger",
            got="neither",
            remedy="Give target=, or rule= for an attack that is not all-to-one.",
        )
    counted, wanted = _what_counts(rule, test)
    place = next((t for t in (*model.parameters(), *model.buffers())), test.images)
    dtype = place.dtype if place.is_floating_point() else torch.float32

    triggered = torch.full_like(test.labels, NOT_SHOWN)
    with eval_mode(model):
        clean = _predict(model, _on(place.device, dtype, test, batch_size), test.num_classes)
        if trigger is not None and bool(counted.any()):
            shown = test.subset(counted)
            pictures = _with_trigger(trigger, _on(place.device, torch.float32, shown, batch_size))
            said = _predict(model, (p.to(dtype) for p in pictures), test.num_classes)
            triggered[counted] = said.to(triggered.device)

    outcomes = Outcomes(
        # A copy: what was measured must not change when the caller's labels do.
        labels=test.labels.cpu().numpy().copy(),
        clean=clean.numpy(),
        triggered=None if trigger is None else triggered.cpu().numpy(),
        counted=None if trigger is None else counted.cpu().numpy(),
        wanted=None if trigger is None else wanted.cpu().numpy(),
        images=fingerprint(test.images),
    )
    known = rule.target if isinstance(rule, AllToOne) else None
    return summarize(outcomes, test.classes, target=known)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the network in eval mode inside the block; afterwards every module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): a module that was frozen inside a training network stays frozen.
        for module, training in modes:
            module.training = training


def _rule(target: int | None, rule: TargetRule | None) -> TargetRule | None:
    if target is not None and rule is not None and rule != AllToOne(target):
        raise SpecError(
            "a target or a rule", got=f"target {target} and {rule}", remedy="Give one of them."
        )
    return AllToOne(target) if rule is None and target is not None else rule


def _what_counts(rule: TargetRule | None, test: LabelledImages) -> tuple[Tensor, Labels]:
    """Return which images count for the ASR, and the attacker's class for every image."""
    if rule is None:
        return torch.zeros_like(test.labels, dtype=torch.bool), test.labels
    k = test.num_classes
    if isinstance(rule, AllToOne) and not 0 <= rule.target < k:
        raise DataError(
            f"a target from 0 to {k - 1} ({k} classes)",
            got=str(rule.target),
            remedy="Give the index of a class, counted from 0.",
        )
    if isinstance(rule, AllToAll) and rule.num_classes != k:
        raise DataError(
            f"an all-to-all rule over {k} classes, like the test images",
            got=f"one over {rule.num_classes}",
            remedy=f"Use AllToAll({k}).",
        )
    counted, wanted = rule.counted(test.labels), rule.wanted(test.labels)
    if (
        counted.shape != test.labels.shape
        or counted.dtype != torch.bool
        or wanted.shape != test.labels.shape
        or wanted.dtype != torch.int64
        or int(wanted.min()) < 0
        or int(wanted.max()) >= k
    ):
        raise DataError(
            f"a rule giving n truth values and n int64 labels from 0 to {k - 1}",
            got=f"counted {counted.dtype} {tuple(counted.shape)}, wanted {wanted.dtype} "
            f"{tuple(wanted.shape)} from {wanted.min()} to {wanted.max()}",
            remedy="Mend the rule's counted() or wanted().",
        )
    free = int((counted & (wanted == test.labels)).sum())
    if free:
        # Such an image would be a success and a recovery at once: ASR + RA could exceed 1.
        raise DataError(
            "a rule that counts no image whose true class is already the wanted one",
            got=f"{free} such images",
            remedy="Leave them out in the rule's counted().",
        )
    return counted, wanted


def _on(
    device: torch.device, dtype: torch.dtype, data: LabelledImages, size: int
) -> Iterator[Images]:
    for images, _ in data.batches(size):
        yield images.to(device, dtype)


def _with_trigger(trigger: Trigger, batches: Iterator[Images]) -> Iterator[Images]:
    """Yield the batches with the trigger on them, as 8-bit pictures.

    Not in inference mode: the call of a sample-specific trigger may itself optimize.
    """
    changed = False
    for images in batches:
        # A copy, so that a trigger that writes into its input harms neither data nor comparison.
        pictures = round_to_8_bits(_checked(trigger(images.clone()), images)).to(images)
        changed = changed or not torch.equal(pictures, round_to_8_bits(images))
        yield pictures
    if not changed:
        raise TriggerError(
            "a trigger that changes the images",
            got="one that changes no pixel of any of them, once rounded to 8 bits",
            remedy="Check its size, its place and its strength (1/255 is one step).",
        )


def _checked(result: Images, images: Images) -> Images:
    """Return what a trigger made of ``images``, off its graph."""
    if not isinstance(result, Tensor) or result.shape != images.shape:
        got = f"{tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise TriggerError(
            f"a trigger that keeps the images' shape {tuple(images.shape)}",
            got=got,
            remedy="Return one picture for every image, of the same size.",
        )
    if not result.is_floating_point():
        raise TriggerError(
            "a trigger that returns floats in [0, 1]",
            got=str(result.dtype),
            remedy="Divide 8-bit pictures by 255.",
        )
    result = result.detach()
    low, high = (float(v) for v in torch.aminmax(result))
    # Written so that NaN, which compares false with everything, is refused as well.
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise TriggerError(
            "a trigger that stays in [0, 1]",
            got=f"values from {low:.4g} to {high:.4g}",
            remedy="Clamp its result; normalization belongs to the network.",
        )
    return result


def _predict(model: nn.Module, batches: Iterator[Images], k: int) -> Labels:
    """Return the predicted class of every image, on the CPU."""
    said = []
    for images in batches:
        with torch.inference_mode():
            logits = model(images)
            if not isinstance(logits, Tensor) or logits.shape != (len(images), k):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ModelError(
                    f"logits of shape ({len(images)}, {k}), one for every class",
                    got=f"{got}",
                    remedy="Give the class map of this network, or the network of these classes.",
                )
            if bool(logits.isnan().any()):
                raise ModelError(
                    "logits that are numbers",
                    got="NaN",
                    remedy="The weights are damaged or training diverged; use an earlier state.",
                )
            said.append(logits.argmax(dim=1).cpu())
    return torch.cat(said)
