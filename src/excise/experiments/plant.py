"""Plant a victim: attack × data × network × seed → a bundle that says how it was made."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from excise.attacks import Victim, load_victim, save_victim
from excise.data import DataSet, PoolSplit, split_pool
from excise.errors import DataError
from excise.evaluation import evaluate, visibility
from excise.experiments.environment import environment
from excise.files import write_json
from excise.models import build_model, device_of, read_card
from excise.registry import spec_of
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToOne, Attack, Labelled, LabelledImages, OnRound, Row, ignore_round

__all__ = ["Planting", "plant", "pool_of", "train_victim"]

T = TypeVar("T", bound=Labelled)


@dataclass(frozen=True, kw_only=True)
class Planting:
    """Everything that decides what victim comes out.

    Args:
        attack: an attack of the registry; ``NoAttack()`` trains the clean twin.
        arch: a network's name, such as ``excise:preactresnet18,width=16``.
        recipe: how it is trained.
        seed: draws weights, split, target, trigger, poisoned images and batches.
        victim_images: how many training images the victim gets, or which fraction; the rest is
            the pool a defender draws from.
    """

    attack: Attack
    arch: str
    recipe: Recipe
    seed: int = 0
    victim_images: int | float = 0.5

    def spec(self, data: DataSet) -> dict[str, Any]:
        """Return the planting as plain JSON values."""
        return {
            "attack": spec_of("attack", self.attack),
            "arch": self.arch,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": {"source": data.name, "victim_images": self.victim_images},
        }


def pool_of(train: T, seed: int, victim_images: int | float) -> PoolSplit[T]:
    """Return which training images the victim of ``seed`` gets, and which it never sees."""
    return split_pool(train, victim_images, Rng(seed).child("split"))


def train_victim(
    planting: Planting,
    data: DataSet,
    *,
    device: torch.device | str = "cpu",
    surrogate: nn.Module | None = None,
    checkpoints: Path | None = None,
    on_round: OnRound = ignore_round,
) -> Victim:
    """Build a fresh network and plant the attack in it; the same call gives the same weights."""
    rng = Rng(planting.seed)
    images = pool_of(data.train, planting.seed, planting.victim_images).victim
    model = build_model(
        planting.arch,
        classes=images.classes,
        in_channels=images.shape[0],
        input_size=images.shape[1:],
        mean=data.mean,
        std=data.std,
        rng=rng,
    ).to(device)
    victim: Victim = planting.attack.plant(
        model, images, planting.recipe, rng,
        surrogate=surrogate, checkpoints=checkpoints, on_round=on_round,
    )  # fmt: skip
    return victim


def plant(
    planting: Planting,
    data: DataSet,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    half: bool = False,
    surrogate: nn.Module | None = None,
    described: Mapping[str, Any] | None = None,
    on_round: OnRound = ignore_round,
) -> dict[str, Any]:
    """Train a victim, measure it on the test images and write its bundle; return its card.

    An interrupted planting goes on after the last finished epoch and ends with the same weights;
    the card's ``seconds`` count what led to that epoch too.

    Args:
        planting: what to plant.
        data: training and test images.
        out: the bundle's directory.
        device: where to train.
        half: store weights in half precision.
        surrogate: a clean network the attacker already has; None: attacks that need one train it.
        described: what else the card is to say.
        on_round: called after every epoch.

    Raises:
        DataError: the data has no test images.
    """
    if data.test is None:
        raise DataError(
            "a data set with test images",
            got=f"{data.name} without any",
            remedy="Give a folder with train/ and test/, so that the attack can be measured.",
        )
    checkpoints = out.parent / f".{out.name}.checkpoints"
    clock = checkpoints / "seconds.json"
    made = json.dumps(planting.spec(data), sort_keys=True)
    start = time.perf_counter() - _spent(clock, made)

    def after_round(row: Row) -> None:
        # A row comes once its checkpoint is safe: so much is not done again.
        write_json(clock, {"made": made, "seconds": time.perf_counter() - start})
        on_round(row)

    victim = train_victim(
        planting, data,
        device=device, surrogate=surrogate, checkpoints=checkpoints, on_round=after_round,
    )  # fmt: skip
    card: dict[str, Any] = {
        **(described or {}),
        "made": planting.spec(data),
        "made_on": environment(torch.device(device)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    card["seconds"] = time.perf_counter() - start
    # Measured as it will lie on disk: half precision may move a prediction.
    stored = _as_stored(victim, device) if half else victim
    card["measured"] = measure(stored, data.test)
    card["poisoned"] = _poisoned(planting, data, victim)
    save_victim(out, victim, card, half=half)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return read_card(out)


def _spent(clock: Path, made: str) -> float:
    """Return the seconds of the same planting before it was interrupted, as far as it says."""
    try:
        said = json.loads(clock.read_text(encoding="utf-8"))
        return float(said["seconds"]) if said["made"] == made else 0.0
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0.0


def _poisoned(planting: Planting, data: DataSet, victim: Victim) -> dict[str, Any] | None:
    """Return how much was poisoned, against all images and against the target's; None: online."""
    if victim.backdoor is None or victim.poison_index is None:
        return None
    images = pool_of(data.train, planting.seed, planting.victim_images).victim
    n = len(victim.poison_index)
    rule = victim.backdoor.rule
    # The victim may have drawn no image of the target, or poison goes to several classes.
    of_target = images.counts()[rule.target] if isinstance(rule, AllToOne) else 0
    return {
        "images": n,
        "fraction_of_all": n / len(images),
        "fraction_of_target_class": n / of_target if of_target else None,
        "covers": len(victim.cover_index) if victim.cover_index is not None else 0,
    }


def _as_stored(victim: Victim, device: torch.device | str) -> Victim:
    """Return the victim as a bundle in half precision gives it back."""
    with tempfile.TemporaryDirectory() as folder:
        save_victim(Path(folder) / "bundle", victim, {}, half=True)
        stored, _ = load_victim(Path(folder) / "bundle")
    return replace(stored, model=stored.model.to(device))


def measure(victim: Victim, test: LabelledImages) -> dict[str, Any]:
    """Return ACC and, with a backdoor, ASR, RA and the trigger's visibility, as plain JSON."""
    backdoor = victim.backdoor
    measured = evaluate(
        victim.model,
        test,
        trigger=backdoor.trigger if backdoor else None,
        rule=backdoor.rule if backdoor else None,
    )
    whole = measured.to_json()
    seen = visibility(test.to(device_of(victim.model)), backdoor.trigger) if backdoor else None
    return {
        **{name: whole[name] for name in ("n", "acc", "asr", "ra", "target_recall")},
        "visibility": seen.to_json() if seen else None,
    }
