"""What BTI-DBF does to a network in a round: decouple its benign features, then train a generator.

Equations and departures stand in :mod:`excise.inversion.bti_dbf`; the inverter there and the
defense of the same name both work with this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from excise.inversion.masked import squash
from excise.inversion.unet import UNet
from excise.models import device_of, dtype_of
from excise.models.taps import feature_maps, tapped
from excise.registry import STRICT
from excise.seeding import Rng
from excise.training import descend, train_epochs
from excise.training.epochs import Step
from excise.types import Images, LabelledImages, Labels, OnRound, Row, as_floats

__all__ = ["Decoupling", "Drawn", "Search", "through"]


@checked(frozen=True, kw_only=True, config=STRICT)
class Decoupling:
    """The settings of the stages that inverting and unlearning share."""

    pretrain_epochs: Annotated[int, Field(ge=0)] = 50
    """Epochs in which the generator learns to change nothing that matters."""
    mask_epochs: Annotated[int, Field(ge=1)] = 20
    """Epochs that decouple the benign features, in each round."""
    generator_epochs: Annotated[int, Field(ge=1)] = 30
    """Epochs of the generator, in each round."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images a step, in every stage."""
    mask_rate: Annotated[float, Field(gt=0)] = 0.01
    """Adam rate of the mask."""
    generator_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Adam rate of the generator."""
    width: Annotated[int, Field(ge=1, le=512)] = 32
    """Filters of the U-Net's first block."""
    blocks: Annotated[int, Field(ge=0, le=8)] = 4
    """How often the U-Net halves an image, at most."""
    pixel_bound: Annotated[float, Field(gt=0)] = 0.012
    """Largest MSE of [0, 1] pixels; published .3 of CIFAR-10 divided by its std, .3 · .2²."""
    benign_bound: Annotated[float, Field(gt=0)] = 3.0
    """Largest MSE of benign features."""
    benign_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the benign features' MSE beside the other features'."""
    noise: Annotated[float, Field(ge=0)] = 0.006
    """Standard deviation of what is added to [0, 1] images before the target is read off them;
    published .03 of CIFAR-10 divided by its std."""


class Search:
    """A generator on its way, and the network that it is to mislead.

    Args:
        settings: of the stages.
        network: a working copy, which may change between rounds; in eval mode, frozen here.
        data: clean images on its device.
        rng: draws the generator, the masks, orders, augmentation and noise.
        on_round: called after every epoch.

    Raises:
        ModelError: the network has no feature map before its pooling.
    """

    def __init__(
        self,
        settings: Decoupling,
        network: nn.Module,
        data: LabelledImages,
        rng: Rng,
        on_round: OnRound,
    ) -> None:
        self.settings, self.network, self.data = settings, network, data
        self.rng, self.on_round = rng, on_round
        self.cut = feature_maps(network, data.floats())[-1]
        channels, *size = data.shape
        with rng.scope("generator"):
            generator = UNet(channels, (size[0], size[1]), settings.width, settings.blocks)
        self.generator = generator.to(device_of(network), dtype_of(network))
        self._optimizer = torch.optim.Adam(self.generator.parameters(), settings.generator_rate)
        self.history: list[Row] = []
        self.notes: list[str] = []

    def features(self, images: Images) -> tuple[Tensor, Tensor]:
        """Return F ``(n, c, h, w)`` and the logits ``(n, k)`` of images."""
        with tapped(self.network, [self.cut]) as seen:
            logits = self.network(images)
        return seen[self.cut], logits

    def run(self, module: nn.Module, step: Step, stage: str, number: int, epochs: int) -> bool:
        """Train ``module`` with ``step`` in round ``number``; return whether all stayed finite."""

        def tell(row: Row) -> None:
            self.history.append({**row, "round": number})
            self.on_round(self.history[-1])

        dtype = dtype_of(self.network)
        ran = train_epochs(
            module, self.data, lambda x, y, progress: step(x.to(dtype), y, progress),
            self.rng.child(f"{stage}/{number}"), epochs=epochs,
            batch_size=self.settings.batch_size, stage=stage, answers=False, on_round=tell,
        )  # fmt: skip
        self.notes += ran.notes
        return not ran.diverged

    def pretrain(self) -> bool:
        """Step 1: min_G CE(f(G(x)), p(x)) + MSE(F(x), F(G(x))) + 100 · MSE(x, G(x))."""
        self._freeze()

        def step(x: Images, y: Labels, progress: float) -> Tensor:
            with torch.no_grad():
                benign, logits = self.features(x)
            drawn = self.generator(x)
            changed, answer = self.features(drawn)
            same = F.cross_entropy(answer, logits.softmax(1)) + F.mse_loss(changed, benign)
            return descend(self._optimizer, same + 100 * F.mse_loss(drawn, x))

        return self.run(self.generator, step, "pretrain", 0, self.settings.pretrain_epochs)

    def decouple(self, number: int) -> tuple[Float[Tensor, "1 c h w"], bool]:
        """Step 2: min_M CE(h(M⊙F), y) − CE(h((1−M)⊙F), y); return M, and whether it is finite."""
        self._freeze()
        with torch.no_grad():
            shape = self.features(self.data.floats()[:1].to(dtype_of(self.network)))[0]
        generator = self.rng.torch(f"mask/{number}", shape.device)
        drawn = torch.empty_like(shape, memory_format=torch.contiguous_format)
        raw = nn.ParameterList([drawn.normal_(generator=generator)])
        optimizer = torch.optim.Adam(raw.parameters(), lr=self.settings.mask_rate)

        def step(x: Images, y: Labels, progress: float) -> Tensor:
            mask = squash(raw[0])
            # Both halves in one pass, each image twice: whatever follows the cut sees a batch.
            parts = torch.cat(
                [mask.expand(len(x), -1, -1, -1), (1 - mask).expand(len(x), -1, -1, -1)]
            )
            with through(self.network.get_submodule(self.cut), lambda maps: parts * maps):
                kept, rest = self.network(torch.cat([x, x])).chunk(2)
            return descend(optimizer, F.cross_entropy(kept, y) - F.cross_entropy(rest, y))

        finite = self.run(raw, step, "decouple", number, self.settings.mask_epochs)
        return squash(raw[0]).detach(), finite

    def invert(self, mask: Tensor, number: int, target: int | None) -> bool:
        """Step 3: max_G MSE of (1−M)⊙F − .01 · MSE of M⊙F, within bounds; then towards a target."""
        self._freeze()
        own = self.settings

        def step(x: Images, y: Labels, progress: float) -> Tensor:
            with torch.no_grad():
                benign = self.features(x)[0]
            drawn = self.generator(x)
            changed, answer = self.features(drawn)
            pixels = F.mse_loss(drawn, x)
            kept = F.mse_loss(mask * changed, mask * benign)
            rest = F.mse_loss((1 - mask) * changed, (1 - mask) * benign)
            outside = bool(pixels > own.pixel_bound) or bool(kept > own.benign_bound)
            loss = pixels if outside else own.benign_weight * kept - rest
            if target is not None:
                loss = loss + F.cross_entropy(answer, torch.full_like(y, target))
            return descend(self._optimizer, loss)

        return self.run(self.generator, step, "invert", number, own.generator_epochs)

    @torch.no_grad()
    def target(self) -> int:
        """Step 4: return the class that most images get, a little noise added, once drawn."""
        counts = torch.zeros(self.data.num_classes, dtype=torch.long, device=self.data.device)
        generator = self.rng.torch("noise", self.data.device)
        for images, _ in self.data.batches(self.settings.batch_size):
            images = images.to(dtype_of(self.network))
            noise = torch.empty_like(images).normal_(generator=generator)
            drawn = self.generator((images + self.settings.noise * noise).clamp(0, 1))
            counts += torch.bincount(self.network(drawn).argmax(1), minlength=len(counts))
        return int(counts.argmax())

    def _freeze(self) -> None:
        self.network.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A trigger that a trained generator draws.

    Args:
        generator: from images to changed ones, frozen, in eval mode.
    """

    generator: nn.Module

    @torch.no_grad()
    def __call__(self, images: Images, /) -> Images:
        """Return what the generator makes of the images, in their own type."""
        given = as_floats(images)
        drawn: Tensor = self.generator(
            given.to(device_of(self.generator), dtype_of(self.generator))
        )
        return drawn.to(given.device, given.dtype)


@contextmanager
def through(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put ``change`` of what ``module`` gives in its place while the block runs."""
    handle = module.register_forward_hook(lambda _module, _given, output: change(output))
    try:
        yield
    finally:
        handle.remove()
