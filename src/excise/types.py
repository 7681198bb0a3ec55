"""The words of Excise as types: images, defender's data, triggers, and the protocols of methods.

Images are float tensors in [0, 1] before normalization; normalization is the network's first
layer. Leakage has no argument to arrive through: a defense is given :class:`DefenderData` and
nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from excise.errors import DataError
from excise.seeding import Rng

__all__ = [
    "SUSPICIOUS",
    "AllToAll",
    "AllToOne",
    "Attack",
    "Backdoor",
    "DefenderData",
    "Defense",
    "Detector",
    "Diagnosis",
    "Edit",
    "Edits",
    "Evidence",
    "History",
    "ImageDetector",
    "Images",
    "Inversion",
    "Inverter",
    "Labelled",
    "LabelledImages",
    "Labels",
    "OnRound",
    "RecoveredTrigger",
    "Repair",
    "Scorer",
    "TargetRule",
    "Trigger",
    "as_floats",
    "ignore_round",
    "round_to_8_bits",
    "within",
]

Images = Float[Tensor, "n c h w"]
Labels = Int64[Tensor, "n"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: One row of a method's story: the round's number and what was measured in it.
Row = Mapping[str, float | int | str]
History = tuple[Row, ...]
#: Called after each round with that round's row; how progress reaches a person.
OnRound = Callable[[Row], None]
#: From this suspicion on, an image detector's scorer calls an image triggered.
SUSPICIOUS = 0.5


def ignore_round(row: Row) -> None:
    """Take a row and do nothing: the default progress callback."""


def within(on_round: OnRound, part: str) -> OnRound:
    """Return a callback that tells of every row which part of a larger job it belongs to."""

    def tell(row: Row) -> None:
        stage = row.get("stage")
        on_round({**row, "stage": part if stage is None else f"{part}, {stage}"})

    return tell


def as_floats(images: Tensor) -> Images:
    """Return images as floats in [0, 1]: 8-bit images as float32, floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def round_to_8_bits(images: Images) -> Images:
    """Return float images holding only values an 8-bit file can carry, clipped to [0, 1].

    Poisoning and evaluation use it, so that what is measured is what a picture file carries.
    """
    return images.clamp(0, 1).mul(255).round_().div_(255)


class Labelled(Protocol):
    """Labeled images, decoded or not: what a draw by class looks at."""

    @property
    def labels(self) -> Tensor:
        """The class of each image, ``(n,)`` int64."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        ...

    def counts(self) -> list[int]:
        """Return how many images each class has."""
        ...

    def subset(self, index: Tensor) -> Self:
        """Return the images at ``index``, in that order."""
        ...


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their true labels and the names of all classes.

    Args:
        images: ``(n, c, h, w)``, uint8 as stored on disk or float in [0, 1].
        labels: ``(n,)`` integers in [0, number of classes).
        classes: a name for every output of the network, in the order of its outputs.
        mirror: whether a mirrored picture still shows the same class (not so for digits and
            traffic signs); training flips images only where it does.

    Raises:
        DataError: shapes, types, values or labels that do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mirror: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.ndim != 1 or len(self.images) != len(self.labels):
            raise DataError(
                "images of shape (n, c, h, w) and n labels",
                got=f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)}",
                remedy="Stack the images into one tensor, channels before height and width.",
            )
        if len(self.images) == 0:
            raise DataError(
                "at least one image", got="none", remedy="Give some clean, labeled images."
            )
        if self.images.requires_grad:
            # What made them is no part of any work on them.
            object.__setattr__(self, "images", self.images.detach())
        if self.images.dtype != torch.uint8:
            fits, got = self.images.dtype in _FLOATS, f"{self.images.dtype} values"
            if fits:
                low, high = (float(v) for v in torch.aminmax(self.images))
                # Written so that NaN, which compares false with everything, is refused as well.
                fits, got = low >= 0 and high <= 1, f"{got} in [{low:.4g}, {high:.4g}]"
            if not fits:
                raise DataError(
                    "float images in [0, 1] or uint8 images",
                    got=got,
                    remedy="Undo any normalization and scale to [0, 1]; normalization belongs "
                    "to the network (mean= and std= of excise.load_model).",
                )
        if self.labels.dtype != torch.int64:
            raise DataError(
                "labels of type int64",
                got=str(self.labels.dtype),
                remedy="Convert them with labels.long().",
            )
        low, high = (int(v) for v in torch.aminmax(self.labels))
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes)",
                got=f"labels from {low} to {high}",
                remedy="Check the class map: every label must name one output of the network.",
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many outputs the network has to have."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def floats(self) -> Images:
        """Return all images as floats in [0, 1]; 8-bit images become float32."""
        return as_floats(self.images)

    def subset(self, index: Tensor) -> LabelledImages:
        """Return the images at ``index`` (integers or a mask), in that order."""
        index = index.to(self.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return the same images on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, size: int) -> Iterator[tuple[Images, Labels]]:
        """Yield ``(images, labels)`` in order, as floats, at most ``size`` at a time."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield as_floats(images), labels

    def counts(self) -> list[int]:
        """Return how many images each class has."""
        return torch.bincount(self.labels, minlength=self.num_classes).tolist()

    def fingerprint(self) -> str:
        """Return a hash of every pixel, label and class name: equal data, equal fingerprint."""
        digest = hashlib.sha256(repr((self.classes, tuple(self.images.shape))).encode())
        digest.update(self.images.contiguous().cpu().numpy().tobytes())
        digest.update(self.labels.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DefenderData:
    """The few clean images a defense may see; never test data, never the true trigger.

    Args:
        train: images a method learns from.
        validation: images a method decides by; disjoint from ``train``. None for a method that
            needs no validation and got every image in ``train``.
        pool: where the images were drawn from, in words; it stands in the record.
    """

    train: LabelledImages
    validation: LabelledImages | None
    pool: str

    @property
    def num_classes(self) -> int:
        """How many classes the network tells apart."""
        return self.train.num_classes

    def held_out(self, method: str) -> LabelledImages:
        """Return the validation images, for a method that cannot do without.

        Raises:
            DataError: there are none.
        """
        if self.validation is None:
            raise DataError(
                f"validation images for {method}",
                got="training images only",
                remedy="Give at least 2 images per class, or split them with "
                "excise.data.defender_data.",
            )
        return self.validation

    def everything(self) -> LabelledImages:
        """Return every image the defender owns, training images first."""
        if self.validation is None:
            return self.train
        return replace(
            self.train,
            images=torch.cat([self.train.images, self.validation.images]),
            labels=torch.cat([self.train.labels, self.validation.labels]),
        )

    def to(self, device: torch.device | str) -> DefenderData:
        """Return the same data on ``device``."""
        validation = self.validation.to(device) if self.validation is not None else None
        return replace(self, train=self.train.to(device), validation=validation)


@runtime_checkable
class Trigger(Protocol):
    """A pure function images → images of the same shape, values in [0, 1]."""

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the trigger on them; the given images stay as they are."""
        ...


@runtime_checkable
class TargetRule(Protocol):
    """Which label the attacker wants for an image of a given true label."""

    def wanted(self, labels: Labels) -> Labels:
        """Return the attacker's label for each true label."""
        ...

    def counted(self, labels: Labels) -> Bool[Tensor, " n"]:
        """Return which images an attack success rate counts."""
        ...


@dataclass(frozen=True)
class AllToOne:
    """Every triggered image is to be called ``target``; the target's own images do not count."""

    target: int

    def wanted(self, labels: Labels) -> Labels:
        """Return ``target`` for every image."""
        return torch.full_like(labels, self.target)

    def counted(self, labels: Labels) -> Bool[Tensor, " n"]:
        """Return where the true label is not already the target."""
        return labels != self.target


@dataclass(frozen=True)
class AllToAll:
    """A triggered image of class y is to be called y + 1, the last class 0."""

    num_classes: int

    def wanted(self, labels: Labels) -> Labels:
        """Return the next class for every image."""
        return (labels + 1) % self.num_classes

    def counted(self, labels: Labels) -> Bool[Tensor, " n"]:
        """Return True for every image."""
        return torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True)
class Backdoor:
    """What the attacker and the evaluator know, and no defense does.

    Args:
        trigger: put on images at test time.
        rule: the label the attacker wants.
        train_trigger: put on poisoned training images, where it differs from ``trigger``.
    """

    trigger: Trigger
    rule: TargetRule
    train_trigger: Trigger | None = None


@dataclass(frozen=True)
class Evidence:
    """What an inverter knows of a trigger it recovered; None where it has no such figure.

    Args:
        flip_rate: fraction of held-back images the trigger sends to ``target``.
        size: L1 norm of its mask or of its perturbation, averaged over images, in pixels.
        anomaly: how far its class stands out among all classes: in MAD units, or as the inverter
            says.
        told: True if the trigger was given, not found.
        explained: share of what the network's batch norms remember beyond clean images that the
            trigger explains; None where they remember nothing.
    """

    flip_rate: float | None = None
    size: float | None = None
    anomaly: float | None = None
    told: bool = False
    explained: float | None = None


@dataclass(frozen=True, eq=False)
class RecoveredTrigger:
    """A trigger an inverter recovered, or was told; it is itself a :class:`Trigger`."""

    trigger: Trigger
    target: int | None = None
    evidence: Evidence = field(default_factory=Evidence)

    def __call__(self, images: Images, /) -> Images:
        """Return the images with the recovered trigger on them."""
        return self.trigger(images)


class Inversion(tuple[RecoveredTrigger, ...]):
    """The triggers an inverter found, strongest evidence first, and what else there is to say.

    An inverter that has nothing to say may return any sequence of triggers.

    Args:
        triggers: none, where none was found or none is worth unlearning.
        notes: what a reader should know of the search, as why nothing is returned.
    """

    notes: tuple[str, ...]

    def __new__(
        cls, triggers: Iterable[RecoveredTrigger] = (), notes: Iterable[str] = ()
    ) -> Inversion:
        """Return the triggers with their notes."""
        made = super().__new__(cls, triggers)
        made.notes = tuple(notes)
        return made


@dataclass(frozen=True)
class Edit:
    """One change made to a network for good.

    Args:
        kind: what was done (:mod:`excise.models.surgery`): ``"silence"`` a filter of a
            convolution, ``"scale"`` (γ) or ``"mute"`` (γ and β) a channel of a batch norm,
            ``"feature"``, an input of a linear layer; ``"clamp"`` or ``"plug"``, something added
            to a layer (:mod:`excise.models.additions`).
        layer: qualified name of the layer.
        index: which filter, channel or input, from 0; None for what concerns the whole layer.
        round: the round of the method in which it happened, from 1.
    """

    kind: str
    layer: str
    index: int | None
    round: int


Edits = tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class Repair:
    """What a defense returns. The given model is never modified, the result never aliases it.

    Args:
        model: the repaired network, in eval mode.
        edits: what was changed for good, in order.
        history: one row a round, pruning first; each row names its ``stage``.
        assumed: what the defense was told that a real defender may not know, such as
            ``"the true trigger"``; it stands in the record.
        notes: what a reader should know of how it went ("stopped at the epoch cap").
        seconds: wall-clock time of each stage.
        triggers: what it worked against, recovered or told.
    """

    model: nn.Module
    edits: Edits
    history: History
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    triggers: tuple[RecoveredTrigger, ...] = ()


@runtime_checkable
class Inverter(Protocol):
    """Recovers triggers from a network and the defender's images."""

    def fit(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Sequence[RecoveredTrigger]:
        """Return the triggers found, strongest evidence first; empty if there is none.

        What else there is to say goes with them: :class:`Inversion`.
        """
        ...


class Defense(Protocol):
    """Turns a network and the defender's images into a repaired network."""

    def repair(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Repair:
        """Return the repaired network and the story of what was done."""
        ...


@dataclass(frozen=True)
class Diagnosis:
    """What a :class:`Detector` says of a network.

    Args:
        backdoored: whether it raises an alarm.
        statistic: the number it decides by; larger is more suspicious.
        threshold: alarm from here on.
        targets: the classes it suspects, the most suspicious first; empty without an alarm.
        per_class: for each class how suspicious it is, in the method's own unit.
        notes: what a reader should know of how it went, and what it cannot see.
        seconds: wall-clock time of each stage.
        tests: where it puts several tests together, how suspicious each class is in each of them.
        triggers: those it recovered for the class it looked at most closely; none if it recovers
            none.
    """

    backdoored: bool
    statistic: float
    threshold: float
    targets: tuple[int, ...]
    per_class: tuple[float, ...]
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    tests: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    triggers: tuple[RecoveredTrigger, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return everything but the triggers themselves, as plain values for a record."""
        return {
            "backdoored": self.backdoored,
            "statistic": self.statistic,
            "threshold": self.threshold,
            "targets": list(self.targets),
            "per_class": list(self.per_class),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "tests": {test: list(each) for test, each in self.tests.items()},
            "triggers": [{"target": one.target, **asdict(one.evidence)} for one in self.triggers],
        }


@runtime_checkable
class Detector(Protocol):
    """Says of a network whether it is backdoored, from the defender's images."""

    def scan(
        self, model: nn.Module, data: DefenderData, rng: Rng, *, on_round: OnRound = ignore_round
    ) -> Diagnosis:
        """Return the diagnosis; the network comes back as it was given."""
        ...


class Scorer(Protocol):
    """Says of each image how much it looks triggered: what an :class:`ImageDetector` returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of how it was fitted."""
        ...

    def __call__(self, images: Tensor, /) -> Float[Tensor, " n"]:
        """Return each image's suspicion in [0, 1]; from :data:`SUSPICIOUS` on it is flagged."""
        ...


class ImageDetector(Protocol):
    """Learns from clean images alone to tell images with a trigger; needs no network."""

    def fit(self, clean: Tensor, rng: Rng, *, on_round: OnRound = ignore_round) -> Scorer:
        """Return what scores images of the same shape; ``clean`` is 8-bit or float in [0, 1]."""
        ...


class Attack(Protocol):
    """Plants a backdoor while a network is trained."""

    def plant(
        self,
        model: nn.Module,
        data: LabelledImages,
        recipe: Any,
        rng: Rng,
        *,
        surrogate: nn.Module | None = None,
        checkpoints: Path | None = None,
        on_round: OnRound = ignore_round,
    ) -> Any:
        """Return the victim: network, backdoor, and what was poisoned."""
        ...
