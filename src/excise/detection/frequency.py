"""Frequency: does an image carry a trigger? A small network judges its cosine transform.

Zeng, Park, Mao, Jia: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021
(arXiv 2104.03413), §4; values from ``Train_Detection.ipynb`` of its repository. Triggers leave high
frequencies that pictures lack. The network learns clean images against the same images with
synthetic artifacts (:mod:`excise.detection.artifacts`); it never sees an attack, nor a classifier.

Departures from the notebook and why:

* It learns from the 50,000 training images of CIFAR-10, each once. Users have fewer: then each is
  repeated evenly until there are as many, with new artifacts each time, and the scorer says so.
* Where they have more, as many are drawn without replacement.
* Pixels are rounded to 8 bits, not cut down (:func:`excise.detection.network.features`).
* After the last epoch the statistics of batch norm are measured anew over some batches. Kept with
  momentum 0.99, they lag behind a short training: then every clean image was flagged.
* ``smooth_epochs``: the paper fine-tunes on smooth triggers, which its notebook leaves out. Ours
  are random smooth patterns as a sixth family, for as many more epochs.

What it cannot see: smooth triggers (LF) before such fine-tuning; warps (WaNet); patches elsewhere
than the taught blocks, which lie at most 5 pixels from two edges; triggers whose spectrum is that
of a picture. It errs on pictures stored otherwise than the clean ones (JPEG, another size).
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.detection.artifacts import FAMILIES, SMOOTH, make
from excise.detection.network import six_convolutions
from excise.detection.scorer import FrequencyScorer, as_bytes, laid_out
from excise.errors import DivergedError
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.fit import batches_of
from excise.types import OnRound, ignore_round

__all__ = ["Frequency"]

#: Batches over which the statistics of batch norm are measured at the end.
_SETTLING = 100


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Frequency:
    """Judges the cosine transform of images; learns from clean images alone."""

    clean_images: Annotated[int, Field(ge=2)] = 50_000
    """Clean images an epoch sees, and as many with an artifact; fewer images are repeated."""
    regenerations: Annotated[int, Field(ge=1)] = 5
    """How often the artifacts are drawn anew."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs after each drawing."""
    smooth_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of fine-tuning with smooth patterns among the artifacts, drawn once more; 0: none,
    and smooth triggers such as LF are missed."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of Adadelta (ρ 0.95, ε 1e-7)."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images a step, clean and with artifact mixed."""
    kernel_decay: Annotated[float, Field(ge=0)] = 2e-4
    """Weight decay of the convolutions' kernels: twice the 1e-4 that Keras has as L2."""

    PRESETS: ClassVar[dict[str, dict[str, float]]] = {
        "published": {},
        "fast": {"clean_images": 10_000, "epochs": 1, "learning_rate": 1.0},
    }
    """``fast``: 10,000 + 10,000 images × 5 epochs, three minutes of a core at 32 × 32. Its learning
    rate is higher: 1,565 steps of the published one leave the network half-taught."""

    def fit(self, clean: Tensor, rng: Rng, *, on_round: OnRound = ignore_round) -> FrequencyScorer:
        """Learn from clean images and return what scores others.

        Args:
            clean: ``(n, c, h, w)`` with 1 or 3 channels, 8-bit or float in [0, 1]; never modified.
            rng: draws weights, artifacts, batches and dropout.
            on_round: called after every epoch with ``epoch``, ``epochs``, ``loss``, ``seconds``.

        Raises:
            DataError: fewer than 2 images, images too small, or values out of range.
            DivergedError: a loss that is not finite.
        """
        clean = as_bytes(clean)
        chosen, notes = self._chosen(clean, rng)
        with rng.scope("global"), torch.enable_grad():
            network = six_convolutions(*clean.shape[1:]).to(clean.device)
            network.to(memory_format=torch.channels_last)
            optimizer = self._optimizer(network)
            stages = [(FAMILIES, self.epochs)] * self.regenerations
            stages += [(SMOOTH, self.smooth_epochs)] * (self.smooth_epochs > 0)
            done, total = 0, sum(epochs for _, epochs in stages)
            for number, (families, epochs) in enumerate(stages):
                generator = rng.torch(f"artifacts/{number}", clean.device)
                made = make(clean[chosen], generator, families, pool=clean)
                for _ in range(epochs):
                    start = time.perf_counter()
                    generator = rng.torch(f"epoch/{done}", clean.device)
                    loss = self._epoch(network, optimizer, clean, chosen, made, generator)
                    done += 1
                    if not math.isfinite(loss):
                        raise DivergedError(
                            f"training the detector diverged in epoch {done}: loss {loss}. "
                            f"Lower learning_rate (now {self.learning_rate:g})."
                        )
                    on_round({
                        "stage": "smooth" if families is SMOOTH else "fit", "epoch": done,
                        "epochs": total, "loss": loss, "seconds": time.perf_counter() - start,
                    })  # fmt: skip
            self._settle(network, clean, chosen, made, rng)
        weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        c, h, w = clean.shape[1:]
        return FrequencyScorer(weights, (c, h, w), notes)

    def _chosen(self, clean: Tensor, rng: Rng) -> tuple[Tensor, tuple[str, ...]]:
        """Return which clean images an epoch sees, and what to say of it."""
        n, wanted = len(clean), self.clean_images
        order = torch.randperm(n, generator=rng.torch("images")).to(clean.device)
        times, rest = divmod(wanted, n)
        if times:
            # Every image equally often, but for the rest.
            index = torch.cat([torch.arange(n, device=clean.device).repeat(times), order[:rest]])
        else:
            index = order[:wanted]
        if n >= wanted:
            return index, ()
        return index, (f"learned from {n:,} clean images, repeated to make {wanted:,}",)

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
        known = {id(kernel) for kernel in kernels}
        others = [p for p in network.parameters() if id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": self.kernel_decay},
            {"params": others},
        ]
        return torch.optim.Adadelta(groups, lr=self.learning_rate, rho=0.95, eps=1e-7)

    def _epoch(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        clean: Tensor,
        chosen: Tensor,
        made: Tensor,
        generator: torch.Generator,
    ) -> float:
        network.train()
        total = torch.zeros((), device=clean.device)
        for index in batches_of(2 * len(chosen), self.batch_size, generator):
            images, labels = _batch(clean, chosen, made, index)
            loss = F.cross_entropy(network(laid_out(images)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
        return float(total) / (2 * len(chosen))

    @torch.no_grad()
    def _settle(
        self, network: nn.Module, clean: Tensor, chosen: Tensor, made: Tensor, rng: Rng
    ) -> None:
        """Measure what the batch norms normalize with, over the last artifacts."""
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches that follow
        network.train()
        generator = rng.torch("settle", clean.device)
        for index in batches_of(2 * len(chosen), self.batch_size, generator)[:_SETTLING]:
            network(laid_out(_batch(clean, chosen, made, index)[0]))


def _batch(clean: Tensor, chosen: Tensor, made: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images at ``index``, clean ones (label 0) before those with artifact (1)."""
    n = len(chosen)
    artificial = index >= n
    images = torch.cat([clean[chosen[index[~artificial]]], made[index[artificial] - n]])
    return images, artificial.long().sort().values
