"""Every trigger of the registry keeps the contract: those made here, and those attacks make."""

import pytest
import torch

from excise import registry
from excise.attacks import Drawn
from excise.seeding import Rng
from excise.testing import TriggerContract
from excise.triggers import (
    Additive,
    Blend,
    InputAwarePattern,
    Layers,
    Patch,
    Quantize,
    ResidualGenerator,
    Ssba,
    Warp,
)
from excise.triggers.networks import Autoencoder, Pyramid, weights_of
from excise.triggers.ssba import encoder_shapes


def checkered(shape):
    """A patch of which every other pixel is replaced, away from the edges."""
    mask = torch.tensor([[True, False], [False, True]])
    return Patch(torch.full((shape[0], 2, 2), 0.5), mask, 2, -4)


def added(shape):
    """A perturbation that lightens here and darkens there."""
    return Additive(torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5)


def faint(shape):
    """A blend that a picture file just so carries."""
    return Blend(torch.rand(shape, generator=torch.Generator().manual_seed(1)), 0.05)


def generated(shape):
    """Two small networks as they were drawn: a mask of about one half, patterns near gray."""
    with Rng(0).scope("networks"):
        generator, mask = Pyramid(shape[0], shape[0], 2), Pyramid(shape[0], 1, 2)
    return InputAwarePattern(weights_of(generator), weights_of(mask))


def noise(shape):
    """One small network as it was drawn; a trained one says more, with a smaller epsilon."""
    with Rng(0).scope("network"):
        return ResidualGenerator(weights_of(Autoencoder(shape[0], 2)), 0.1)


def hiding(shape):
    """An encoder as it was drawn, and four bits."""
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: torch.randn(size, generator=generator) * 0.2
        for name, size in encoder_shapes(4, shape[0], 2).items()
    }
    return Ssba(weights, torch.tensor([1.0, 0.0, 0.0, 1.0]))


def stacked(shape):
    """A faint picture all over, and a pixel of full opacity on top of it."""
    c, h, w = shape
    opacities = torch.full((2, h, w), 0.1)
    opacities[1] = 0
    opacities[1, h // 2, w // 2] = 1
    pictures = torch.rand((2, c, h, w), generator=torch.Generator().manual_seed(2))
    return Layers(pictures, opacities)


def dithered(shape):
    """Few levels, with the errors carried on."""
    return Quantize(8, dither=True)


def beyond(shape):
    """A warp so strong that pixels are sought outside the image."""
    generator = torch.Generator().manual_seed(3)
    return Warp(torch.rand((2, *shape[1:]), generator=generator) * 4 - 2)


def of_attack(row, seed):
    attack = registry.build("attack", row.name)
    return lambda shape: attack.trigger(shape, Rng(seed))


# One for every row of kind "trigger" at least; test_every_trigger_row_is_held_to_the_contract says
# which is missing.
MAKERS = {
    "additive": added,
    "patch": checkered,
    "blend": faint,
    "layers": stacked,
    "input-aware": generated,
    "residual-generator": noise,
    "ssba": hiding,
    "quantize-dithered": dithered,
    "warp-beyond": beyond,
}
DRAWN = [row for row in registry.rows("attack") if issubclass(row.load(), Drawn)]
ALL = MAKERS | {f"{row.name}-seed-{k}": of_attack(row, k) for row in DRAWN for k in (0, 1)}

pytestmark = pytest.mark.fast


class TestTriggers(TriggerContract):
    @pytest.fixture(params=ALL.values(), ids=ALL)
    def make(self, request):
        return request.param


@pytest.mark.parametrize("row", registry.rows("trigger"), ids=lambda row: row.name)
def test_every_trigger_row_is_held_to_the_contract(row):
    made = {type(make((3, 16, 16))) for make in ALL.values()}
    assert row.load() in made, f"{row.name} is new: give it a maker in MAKERS, {__name__}"
