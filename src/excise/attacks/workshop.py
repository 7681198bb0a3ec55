"""What an attacker has at hand while planting, and how its work survives an interruption."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from excise.errors import DataError
from excise.files import whole_file
from excise.models import device_of
from excise.registry import contents_of
from excise.seeding import Rng
from excise.training import Recipe, fit
from excise.types import LabelledImages, OnRound, Row, ignore_round

__all__ = ["Workshop", "in_words"]


def in_words(attack: object) -> str:
    """Return an attack with its settings; of a file that it names, also what the file holds."""
    held = contents_of(attack)
    return f"{attack} {held}" if held else str(attack)


@dataclass(frozen=True, eq=False)
class Workshop:
    """An attacker's material.

    Args:
        model: the fresh network to be planted.
        data: clean training images, as they were given.
        recipe: how the network will be trained.
        rng: the victim's root.
        attack: the attack and its settings (:func:`in_words`); checkpoints of another are refused.
        surrogate: a clean network the attacker already has.
        checkpoints: directory of what lets the work go on after an interruption; None: none.
        on_round: called after every round of the work.
    """

    model: nn.Module
    data: LabelledImages
    recipe: Recipe
    rng: Rng
    attack: str
    surrogate: nn.Module | None = None
    checkpoints: Path | None = None
    on_round: OnRound = ignore_round
    _start: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # The surrogate starts from these weights, also when the network itself was trained since.
        start = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        object.__setattr__(self, "_start", start)

    @property
    def device(self) -> torch.device:
        """Where the network is, and the work is done."""
        return device_of(self.model)

    @cached_property
    def identity(self) -> str:
        """What tells this planting from any other: settings, and a hash of the surrogate."""
        digest = hashlib.sha256()
        if self.surrogate is not None:
            for name, value in self.surrogate.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        return f"{self.attack} {digest.hexdigest()}"

    def file(self, name: str) -> Path | None:
        """Return the checkpoint file called ``name``; None where nothing is kept."""
        if self.checkpoints is None:
            return None
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        return self.checkpoints / name

    def once(
        self,
        name: str,
        compute: Callable[[], dict[str, Tensor]],
        report: Callable[[dict[str, Tensor]], Row] | None = None,
    ) -> dict[str, Tensor]:
        """Return what ``compute`` gives, from the checkpoint if it was computed before.

        Args:
            name: of the file, without suffix.
            compute: gives named tensors; they come back on the processor.
            report: the row of the round that this was, told once the tensors are safe; what comes
                from the checkpoint is not told again.

        Raises:
            DataError: the checkpoint belongs to another run, or is damaged.
        """
        path = self.file(f"{name}.safetensors")
        identity = f"{self.identity} {self.recipe} {self.rng} {self.data.fingerprint()}"
        if path is not None and path.exists():
            return _read(path, identity)
        tensors = {key: value.detach().cpu().contiguous() for key, value in compute().items()}
        if path is not None:
            with whole_file(path) as part:
                save_file(tensors, part, metadata={"identity": identity})
        if report is not None:
            self.on_round(report(tensors))
        return tensors

    def clean_network(self) -> nn.Module:
        """Return the attacker's clean network in eval mode, frozen; trained here if none was given.

        It is trained from the weights the victim starts from, with its recipe and batches: it is
        the clean twin, and giving the twin as ``surrogate`` saves that time.
        """
        network = self.surrogate
        if network is None:
            network = copy.deepcopy(self.model)
            network.load_state_dict(self._start)
            fit(
                network, self.data.to(self.device), self.recipe, self.rng.child("fit"),
                checkpoint=self.file("surrogate.pt"), identity=f"surrogate {self.identity}",
                on_round=lambda row: self.on_round({**row, "stage": "surrogate"}),
            )  # fmt: skip
        return network.to(self.device).eval().requires_grad_(False)


def _read(path: Path, identity: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("identity") == identity:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        got = f"{path}, which belongs to a run with other settings"
    except (OSError, SafetensorError) as error:
        got = f"{path} ({type(error).__name__}: {error})"
    raise DataError(
        "a checkpoint of this very run",
        got=got,
        remedy="Delete it, or choose another output directory.",
    )
