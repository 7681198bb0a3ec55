"""The fit loop: SGD over data that lies on the device as one tensor, resumable after any epoch.

Victims and clean twins are trained by it, under one recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from excise.errors import DataError, DivergedError
from excise.files import whole_file
from excise.models import device_of
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training.augment import crop_and_flip
from excise.types import Images, LabelledImages, Labels, OnRound, as_floats, ignore_round

__all__ = ["Companion", "Recipe", "batches_of", "fit", "number_of_batches"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """How a network is trained. Defaults are the field's (docs/conventions.md, "Victims")."""

    epochs: Annotated[int, Field(ge=1)] = 100
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Highest learning rate of SGD."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of SGD, on every parameter."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up before the cosine decay to zero."""
    crop_padding: Annotated[int, Field(ge=0)] | None = None
    """Pixels of random shift; None: an eighth of the image height (4 at 32 × 32)."""
    flip: bool | None = None
    """Mirror images at random; None: where the data set says a mirrored picture keeps its class."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; weights stay float32. bfloat16 is faster on a GPU and on
    processors made for it, and ten times slower on others."""

    PRESETS: ClassVar[dict[str, dict[str, float | str]]] = {
        "published": {},
        "fast": {
            "epochs": 10, "learning_rate": 0.1, "warmup_epochs": 1.0, "crop_padding": 2,
        },
    }  # fmt: skip
    """Named sets of values; ``fast`` is for narrow networks on a small machine."""

    def rate(self, progress: float) -> float:
        """Return the learning rate after ``progress`` epochs: linear warm-up, then cosine."""
        if progress < self.warmup_epochs:
            return self.learning_rate * (progress + 1e-3) / (self.warmup_epochs + 1e-3)
        span = max(self.epochs - self.warmup_epochs, 1e-9)
        done = (progress - self.warmup_epochs) / span
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Companion(Protocol):
    """What changes the batches a network is trained on, and may itself be trained beside it.

    Attacks that trigger images anew in every batch (WaNet, Bpp), or learn their trigger together
    with the network (Input-aware, LIRA), are one.
    """

    def batch(
        self,
        images: Tensor,
        labels: Labels,
        *,
        seen: int,
        augment: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> tuple[Images, Labels, Tensor | None]:
        """Return the images and labels to train on, and a loss to add to theirs, or None.

        Args:
            images: ``(n, c, h, w)`` as the data set holds them, 8-bit or float, not augmented.
            labels: their labels.
            seen: how many images of this epoch came before this batch.
            augment: crops and mirrors images, 8-bit or float; to be called once per image, before
                or after the trigger, as the paper has it.
            generator: on the images' device; draws whatever the batch needs.
        """
        ...

    def step(self, progress: float) -> None:
        """Update what is trained beside the network; gradients of the batch's loss are there.

        Args:
            progress: epochs done, as a fraction.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: plain containers and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave."""
        ...


def batches_of(n: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return a random order of n images in batches; a last single image joins the batch before.

    Batch norm has no statistics of one value, which a single image gives where the last feature
    map is 1 × 1.
    """
    order = torch.randperm(n, generator=generator, device=generator.device)
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def number_of_batches(n: int, size: int) -> int:
    """Return how many batches :func:`batches_of` makes of n images."""
    return max(1, -(-n // size) - (n % size == 1))


def fit(
    model: nn.Module,
    data: LabelledImages,
    recipe: Recipe,
    rng: Rng,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    companion: Companion | None = None,
    on_round: OnRound = ignore_round,
) -> None:
    """Train ``model`` in place on ``data`` with SGD and cross-entropy.

    Args:
        model: a network over images in [0, 1]; left in eval mode.
        data: on the model's device, poisoned or not.
        recipe: epochs, rates, augmentation, arithmetic.
        rng: every epoch draws from its own name, so that a resumed run equals an undisturbed one.
        checkpoint: written after every epoch, whole or not at all; if it exists, training goes on
            after the last epoch in it. The caller removes it once the result is safe.
        identity: what the caller would tell runs apart by, beside recipe, seed, data and the
            shape of the network; a checkpoint of another run is refused.
        companion: changes every batch and may be trained beside the network; None: none.
        on_round: called after every epoch with ``epoch``, ``epochs``, ``loss``, ``seconds``.

    Raises:
        DivergedError: the loss of an epoch is not finite.
        DataError: the checkpoint belongs to another run, or is damaged.
    """
    # timm and torchvision networks drop out and drop paths from the global generator.
    with rng.scope("global"), torch.enable_grad():
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        if checkpoint is not None:
            identity = f"{identity} {recipe} {rng} {data.fingerprint()} {_shapes(model)}"
        first = _resume(checkpoint, identity, model, optimizer, companion)
        model.to(memory_format=torch.channels_last)
        for epoch in range(first, recipe.epochs):
            start = time.perf_counter()
            torch.manual_seed(rng.number(f"global/{epoch}"))
            loss = _epoch(model, data, recipe, optimizer, epoch, rng, companion)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"training diverged in epoch {epoch + 1}: loss {loss}. "
                    f"Lower learning_rate (now {recipe.learning_rate:g})."
                )
            if checkpoint is not None:
                _save(checkpoint, identity, model, optimizer, companion, epoch + 1)
            on_round({
                "stage": "fit", "epoch": epoch + 1, "epochs": recipe.epochs, "loss": loss,
                "seconds": time.perf_counter() - start,
            })  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    model.eval()


def _epoch(
    model: nn.Module,
    data: LabelledImages,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    rng: Rng,
    companion: Companion | None,
) -> float:
    model.train()
    device = data.device
    generator = rng.torch(f"epoch/{epoch}", device)
    padding = data.shape[1] // 8 if recipe.crop_padding is None else recipe.crop_padding
    flip = data.mirror if recipe.flip is None else recipe.flip
    total = torch.zeros((), device=device)
    batches = batches_of(len(data), recipe.batch_size, generator)
    seen = 0

    def augment(images: Tensor) -> Tensor:
        return crop_and_flip(images, padding, flip, generator)

    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch + step / len(batches))
        labels, extra = data.labels[index], None
        if companion is None:
            images = as_floats(augment(data.images[index]))
        else:
            images, labels, extra = companion.batch(
                data.images[index], labels, seen=seen, augment=augment, generator=generator
            )
        seen += len(index)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        if companion is not None:
            companion.step(epoch + (step + 1) / len(batches))
        total += loss.detach() * len(index)
    return float(total) / len(data)


def _shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def _save(
    path: Path,
    identity: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    companion: Companion | None,
    epoch: int,
) -> None:
    state = {
        "identity": identity,
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "companion": companion.state_dict() if companion is not None else None,
    }
    with whole_file(path) as part:
        torch.save(state, part)


def _resume(
    path: Path | None,
    identity: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    companion: Companion | None,
) -> int:
    if path is None or not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device_of(model), weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise of any kind
        raise _refused(f"{path}, which is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise _refused(f"{path}, which belongs to a run with other settings")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if companion is not None:
        companion.load_state_dict(state["companion"])
    return int(state["epoch"])


def _refused(got: str) -> DataError:
    return DataError(
        "a checkpoint of this very run",
        got=got,
        remedy="Delete it, or choose another output directory.",
    )
