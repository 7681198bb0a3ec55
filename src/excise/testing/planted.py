"""The tiny network with a backdoor on which contracts are tried; trained once a session."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from excise.attacks import BadNets, load_victim, save_victim
from excise.data import defender_data, load_data, split_pool
from excise.evaluation import Evaluation, evaluate
from excise.models import build_model
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import Backdoor, DefenderData, LabelledImages

__all__ = [
    "DropoutNet",
    "Planted",
    "linear_network",
    "once",
    "plain_network",
    "planted_digits",
    "shared_folder",
]

ARCH = "excise:preactresnet18,width=8"
RECIPE = Recipe(epochs=20, batch_size=64, learning_rate=0.05, warmup_epochs=1)
#: The field's corner, where digits are black; poison enough that the attack takes whatever the last
#: bits of a processor's arithmetic are. Not class 0, which a dead network would answer too.
ATTACK = BadNets(size=2, row=-2, column=-2, target=3, poison_ratio=0.2)
SEED = 0
FEW, PLENTY = 10, 50


@dataclass(frozen=True, eq=False)
class Planted:
    """A victim that reads 8 × 8 digits, and the images around it.

    Args:
        model: the victim; a method is given :meth:`network`, a copy.
        backdoor: a 2 × 2 white patch and one target class.
        data: the defender's images, 9 + 1 of each class, which the victim never saw.
        plenty: as many as any method asks for: 45 + 5 of each class.
        pool: where both were drawn from.
        test: images nobody trained on.
    """

    model: nn.Module
    backdoor: Backdoor
    data: DefenderData
    plenty: DefenderData
    pool: LabelledImages
    test: LabelledImages

    def network(self) -> nn.Module:
        """Return a copy of the victim, for a test to do with as it likes."""
        return copy.deepcopy(self.model)

    def measure(self, model: nn.Module) -> Evaluation:
        """Return ACC, ASR and RA of a network on the test images."""
        return evaluate(model, self.test, trigger=self.backdoor.trigger, rule=self.backdoor.rule)


@functools.cache
def planted_digits(folder: Path) -> Planted:
    """Return the planted network, training it if ``folder`` does not hold it yet.

    Args:
        folder: shared by all processes of a test session; see :func:`shared_folder`.
    """
    digits = load_data("digits")
    assert digits.test is not None
    rng = Rng(SEED)
    split = split_pool(digits.train, 0.5, rng.child("split"))

    def train(bundle: Path) -> None:
        model = build_model(
            ARCH,
            classes=digits.train.classes,
            in_channels=1,
            input_size=(8, 8),
            mean=digits.mean,
            std=digits.std,
            rng=rng,
        )
        save_victim(bundle, ATTACK.plant(model, split.victim, RECIPE, rng), {})

    victim, _ = load_victim(once(folder / "planted-digits", train))
    assert victim.backdoor is not None
    data, plenty = (
        defender_data(split.pool, spc=spc, rng=rng.child("sample")) for spc in (FEW, PLENTY)
    )
    return Planted(victim.model, victim.backdoor, data, plenty, split.pool, digits.test)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return a temporary folder that all workers of one test session share."""
    base = factory.getbasetemp()
    # pytest-xdist gives each worker a folder of its own inside the session's.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(path: Path, make: Callable[[Path], None], *, patience: float = 300.0) -> Path:
    """Return ``path`` after one of several processes has made it.

    Args:
        path: what ``make`` makes, whole or not at all.
        make: called by whoever comes first; the others wait.
        patience: seconds after which a waiting process believes that the one at work was killed,
            and makes ``path`` itself.
    """
    lock = path.with_name(f"{path.name}.lock")
    deadline = time.monotonic() + patience
    while not path.exists():
        try:
            # Of several processes exactly one succeeds; no library is needed for that.
            lock.mkdir(parents=True)
        except FileExistsError:
            if time.monotonic() > deadline:
                make(path)
            else:
                time.sleep(0.05)
            continue
        try:
            if not path.exists():
                make(path)
        finally:
            lock.rmdir()
    return path


class DropoutNet(nn.Module):
    """Two convolutions, batch norm and dropout over 8 × 8 gray images: it draws when it trains.

    Args:
        num_classes: outputs.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, 1, h, w)`` to logits ``(n, num_classes)``."""
        x = F.relu(self.norm1(self.conv1(images)))
        x = F.relu(self.conv2(x)).mean((2, 3))
        logits: Tensor = self.linear(self.dropout(x))
        return logits


def linear_network(pixels: int, num_classes: int) -> nn.Module:
    """Return a network without any convolution."""
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, num_classes))


def plain_network(num_classes: int) -> nn.Module:
    """Return a network with two convolutions and without batch norm, over 8 × 8 gray images."""
    with Rng(0).scope("plain"):
        layers = [
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        ]  # fmt: skip
    return nn.Sequential(*layers).eval()
