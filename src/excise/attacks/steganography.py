"""How SSBA's encoder learns to hide secrets, together with a decoder that reads them.

Paper, loss and departures: :mod:`excise.attacks.ssba`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.attacks.packing import packed, unpack
from excise.attacks.workshop import Workshop
from excise.errors import DivergedError, SpecError
from excise.seeding import Rng
from excise.training.augment import crop_and_flip
from excise.training.fit import batches_of
from excise.triggers.ssba import encoder_shapes, hide
from excise.types import LabelledImages, Row, as_floats

if TYPE_CHECKING:
    from excise.attacks.ssba import SSBA

__all__ = ["Steganographer", "trained_encoder"]

State = dict[str, Tensor]

#: Share of a batch's bits to be read before images begin to count.
READ = 0.9
#: Filters and stride of the decoder's convolutions, StegaStamp's.
DECODER = ((32, 2), (32, 1), (64, 2), (64, 1), (64, 2), (128, 2), (128, 2))


def trained_encoder(attack: SSBA, workshop: Workshop, rng: Rng) -> State:
    """Return the encoder's weights; an interrupted training goes on after its last epoch.

    Raises:
        SpecError: no batch of secrets was ever read.
        DivergedError: the loss of an epoch is not finite.
    """
    data, epochs = workshop.data.to(workshop.device), attack.encoder_epochs
    pair = Steganographer(attack, data.shape, rng).to(workshop.device)
    optimizer = torch.optim.Adam(pair.parameters(), attack.learning_rate)

    def compute(epoch: int) -> State:
        generator = rng.torch(f"epoch/{epoch}", workshop.device)
        with torch.enable_grad():
            figures = _epoch(attack, pair, optimizer, data, generator)
        return packed(pair, optimizer) | {"figures": figures}

    def report(epoch: int, state: State) -> Row:
        loss, accuracy, change = state["figures"].tolist()
        return {
            "stage": "encoder", "epoch": epoch + 1, "epochs": epochs, "loss": loss,
            "bit_accuracy": accuracy, "psnr": -10 * math.log10(max(change, 1e-10)),
        }  # fmt: skip

    for epoch in range(epochs):
        work = partial(compute, epoch), partial(report, epoch)
        state = workshop.once(f"encoder-{epoch + 1}", *work)
        unpack(state, pair, optimizer)
        loss, accuracy, _ = state["figures"].tolist()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the encoder diverged in epoch {epoch + 1}: loss {loss}. "
                f"Lower learning_rate (now {attack.learning_rate:g})."
            )
    if pair.schedule[1] < 0:
        raise SpecError(
            f"an encoder whose secrets are read to {READ:.0%} within {epochs} epochs",
            got=f"{accuracy:.0%} in the last",
            remedy="Give more encoder_epochs, a higher learning_rate or fewer bits.",
        )
    return {name: weight.detach().cpu().clone() for name, weight in pair.weights().items()}


class Steganographer(nn.Module):
    """Encoder and decoder, from He-normal weights.

    Args:
        attack: says how large they are.
        shape: channels, height and width of the images.
        rng: draws the weights.
    """

    schedule: Tensor

    def __init__(self, attack: SSBA, shape: tuple[int, int, int], rng: Rng) -> None:
        super().__init__()
        inputs, h, w = shape
        shapes = encoder_shapes(attack.bits, inputs, attack.width)
        with rng.scope("networks"):
            self.encoder = nn.ParameterDict({k: torch.zeros(s) for k, s in shapes.items()})
            layers: list[nn.Module] = []
            for outputs, stride in DECODER:
                layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
                inputs, h, w = outputs, -(-h // stride), -(-w // stride)
            layers += [nn.Flatten(), nn.Linear(inputs * h * w, 512), nn.ReLU()]
            self.decoder = nn.Sequential(*layers, nn.Linear(512, attack.bits))
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.kaiming_normal_(parameter, nonlinearity="relu")
                else:
                    nn.init.zeros_(parameter)
        # Steps done, and the step of the first batch that was read; a resumed run must know.
        self.register_buffer("schedule", torch.tensor([0, -1]))

    def weights(self) -> State:
        """Return the encoder's weights by name."""
        return dict(self.encoder.items())


def _epoch(
    attack: SSBA,
    pair: Steganographer,
    optimizer: torch.optim.Optimizer,
    data: LabelledImages,
    generator: torch.Generator,
) -> Tensor:
    """Train for an epoch; return mean loss, bit accuracy and square change of a pixel."""
    figures = []
    for index in batches_of(len(data), attack.batch_size, generator):
        images = as_floats(data.images[index])
        size = (len(index), attack.bits)
        secrets = torch.randint(0, 2, size, generator=generator, device=data.device).float()
        residual = hide(pair.weights(), secrets, images)
        hidden = (images + residual).clamp(0, 1)
        seen = hidden
        if attack.shift:
            seen = crop_and_flip(hidden, attack.shift, data.mirror, generator)
        read = pair.decoder(seen - 0.5)
        step, first_read = pair.schedule.tolist()
        weight = attack.weight_after(step - first_read) if first_read >= 0 else 0.0
        loss = F.binary_cross_entropy_with_logits(read, secrets)
        loss = loss + weight * residual.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        accuracy = ((read > 0) == (secrets > 0)).float().mean()
        if first_read < 0 and accuracy > READ:
            pair.schedule[1] = step
        pair.schedule[0] += 1
        change = (hidden - images).square().mean()
        figures.append(torch.stack([loss, accuracy, change]).detach())
    return torch.stack(figures).mean(0)
