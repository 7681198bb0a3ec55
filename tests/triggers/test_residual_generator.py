"""clip(x + ε·G(x))."""

import pytest
import torch

from excise.errors import TriggerError
from excise.seeding import Rng
from excise.triggers import ResidualGenerator
from excise.triggers.networks import Autoencoder, rebuilt, weights_of
from excise.types import round_to_8_bits

pytestmark = pytest.mark.fast


def weights(channels=3, width=2):
    with Rng(0).scope("network"):
        return weights_of(Autoencoder(channels, width))


def constant(sign):
    """A network that says ±1 everywhere."""
    silent = {name: torch.zeros_like(value) for name, value in weights().items()}
    return silent | {"last.bias": torch.full((3,), 50.0 * sign)}


@pytest.mark.parametrize(
    ("sign", "level", "expected"),
    [(1, 100, 103), (-1, 100, 97), (1, 254, 255), (-1, 2, 0), (1, 0, 3)],
)
def test_the_worked_values(sign, level, expected):
    """The published 0.01 is 2.55 steps of 8 bits: 100 becomes 103 or 97; the ends clip."""
    images = torch.full((1, 3, 8, 8), level / 255)
    triggered = round_to_8_bits(ResidualGenerator(constant(sign), 0.01)(images))
    assert triggered.mul(255).unique().tolist() == pytest.approx([expected])


def test_the_published_size_on_standardized_images_is_lost_in_a_picture_file():
    """0.01 of a standard deviation of 0.25 is 0.64 steps, and half of that rounds to none."""
    images = torch.full((1, 3, 8, 8), 100 / 255)
    half = constant(1) | {"last.bias": torch.full((3,), 0.5493)}  # tanh gives ½
    assert torch.equal(round_to_8_bits(ResidualGenerator(half, 0.0025)(images)), images)


def test_against_the_formula():
    images, held = torch.rand(8, 3, 9, 20), weights()
    expected = (images + 0.05 * rebuilt(Autoencoder, held)(images)).clamp(0, 1)
    torch.testing.assert_close(ResidualGenerator(held, 0.05)(images), expected)


@pytest.mark.parametrize("epsilon", [0, -0.1, 1.5, float("nan"), "some", None])
def test_a_size_out_of_range_is_refused(epsilon):
    with pytest.raises(TriggerError, match=r"epsilon in \(0, 1\], got .*\. The published one is"):
        ResidualGenerator(weights(), epsilon)


def test_images_of_other_channels_are_refused():
    with pytest.raises(TriggerError, match=r"images of 1 channels, .*, got 3\. Plant a victim"):
        ResidualGenerator(weights(1), 0.1)(torch.rand(2, 3, 8, 8))
