"""What makes images hard to recognize: an adversarially trained network, and PGD against it.

Papers: Madry, Makelov, Schmidt, Tsipras, Vladu (ICLR 2018, arXiv 1706.06083); Wong, Rice, Kolter:
Fast is better than free (ICLR 2020, arXiv 2001.03994).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from excise.attacks.workshop import Workshop
from excise.models import copy_of
from excise.training import Companion, fit
from excise.training.perturb import pgd
from excise.types import Images, Labels, Row, Trigger, as_floats

__all__ = ["Hardened", "adversarially_trained"]

_BATCH = 256


def adversarially_trained(
    workshop: Workshop, network: nn.Module, *, epsilon: float, steps: int, epochs: int
) -> nn.Module:
    """Return a copy of ``network``, trained on with the workshop's recipe on perturbed batches.

    Args:
        workshop: gives data, recipe and checkpoints.
        network: the clean network to start from; stays as it is.
        epsilon: radius of the ℓ∞ ball, in the units of [0, 1] images.
        steps: PGD steps a batch from a random start: one of 1.25 ε (the fast method), or several
            of ε/4, as the 7 steps of 2/255 for ε = 8/255 of Madry et al.
        epochs: how many; each costs about 1 + ``steps`` ordinary ones.
    """
    network = copy_of(network).requires_grad_(True)
    step_size = 1.25 * epsilon if steps == 1 else epsilon / 4
    fit(
        network, workshop.data.to(workshop.device), replace(workshop.recipe, epochs=epochs),
        workshop.rng.child("adversarial"), checkpoint=workshop.file("adversarial.pt"),
        identity=f"adversarial {workshop.identity}",
        companion=_Adversary(workshop, network, epsilon, step_size, steps),
        on_round=lambda row: workshop.on_round({**row, "stage": "adversarial"}),
    )  # fmt: skip
    return network.requires_grad_(False)


@dataclass(frozen=True, eq=False)
class _Adversary(Companion):
    """Perturbs every batch against the network as it is at that moment."""

    workshop: Workshop
    network: nn.Module
    epsilon: float
    step_size: float
    steps: int

    def batch(
        self,
        images: Tensor,
        labels: Labels,
        *,
        seen: int,
        augment: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> tuple[Images, Labels, None]:
        with _arithmetic(self.workshop):
            moved = pgd(
                self.network, as_floats(augment(images)), labels, epsilon=self.epsilon,
                step_size=self.step_size, steps=self.steps, generator=generator,
            )  # fmt: skip
        return moved, labels, None

    def step(self, progress: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Hardened:
    """A trigger for training images: PGD away from their class, then the trigger of test time.

    What became of a batch is kept in the workshop under a hash of its pixels, so that an
    interrupted planting does not repeat it.

    Args:
        workshop: keeps the work and tells of it.
        network: what the images are made hard for; in eval mode.
        label: the class of all of them.
        epsilon: radius of the ℓ∞ ball, in the units of [0, 1] images.
        step_size: change of a value in one step, in the same units.
        steps: how many, from the image itself.
        trigger: put on afterwards.
    """

    workshop: Workshop
    network: nn.Module
    label: int
    epsilon: float
    step_size: float
    steps: int
    trigger: Trigger

    def __call__(self, images: Images, /) -> Images:
        """Return the images, hard to recognize and with the trigger on."""
        done, moved = 0, [images[:0]]
        for batch in images.split(_BATCH):
            done += len(batch)
            pixels = hashlib.sha256(batch.detach().cpu().contiguous().numpy().tobytes())
            name = f"hardened-{pixels.hexdigest()[:16]}"
            kept = self.workshop.once(
                name, partial(self._harden, batch), partial(_row, done, len(images))
            )
            moved.append(kept["images"].to(images))
        return self.trigger(torch.cat(moved))

    def _harden(self, batch: Images) -> dict[str, Tensor]:
        batch = batch.to(self.workshop.device)
        labels = torch.full((len(batch),), self.label, device=batch.device)
        with _arithmetic(self.workshop):
            moved = pgd(
                self.network, batch, labels, epsilon=self.epsilon,
                step_size=self.step_size, steps=self.steps,
            )  # fmt: skip
        return {"images": moved}


def _row(done: int, of: int, state: dict[str, Tensor]) -> Row:
    return {"stage": "hardening", "round": done, "rounds": of}


def _arithmetic(workshop: Workshop) -> torch.autocast:
    enabled = workshop.recipe.precision == "bfloat16"
    return torch.autocast(workshop.device.type, torch.bfloat16, enabled=enabled)
