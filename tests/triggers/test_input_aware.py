"""x + (G(x) − x)·M(x)."""

import dataclasses

import pytest
import torch

from excise.errors import TriggerError
from excise.seeding import Rng
from excise.triggers import InputAwarePattern
from excise.triggers.input_aware import mixed, sharpened
from excise.triggers.networks import Pyramid, rebuilt, weights_of

pytestmark = pytest.mark.fast


def weights(channels=3, outputs=3, width=2, seed=0):
    """Weights as they were drawn, with statistics of batch norm that fit some images."""
    with Rng(seed).scope("network"):
        network = Pyramid(channels, outputs, width)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network(torch.rand(8, channels, 16, 16))
        return weights_of(network)


def test_against_the_formula():
    generator, mask, images = weights(), weights(outputs=1, seed=1), torch.rand(8, 3, 9, 14)
    g, m = rebuilt(Pyramid, generator)(images), rebuilt(Pyramid, mask)(images)
    expected = images + (g - images) * (torch.tanh(20 * m - 10) / 2 + 0.5)
    torch.testing.assert_close(InputAwarePattern(generator, mask)(images), expected)


def test_every_image_gets_its_own():
    trigger = InputAwarePattern(weights(), weights(outputs=1, seed=1))
    images = torch.rand(2, 3, 16, 16)
    crossed = mixed(images, *(f(images.flip(0)) for f in trigger._networks))
    own = mixed(images, *(f(images) for f in trigger._networks))
    assert (own - crossed).abs().max() > 0.01
    assert sharpened(torch.tensor(0.5)) == 0.5


def test_images_of_other_channels_are_refused():
    trigger = InputAwarePattern(weights(), weights(outputs=1))
    with pytest.raises(
        TriggerError, match=r"images of 3 channels, like those the trigger .*, got 1\. Plant a"
    ):
        trigger(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("generator", "mask", "got"),
    [
        (weights(), weights(), "3 to 3 and 3 to 3"),
        (weights(outputs=1), weights(outputs=1), "3 to 1 and 3 to 1"),
        (weights(), weights(1, 1), "3 to 3 and 1 to 1"),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(generator, mask, got):
    with pytest.raises(TriggerError, match=f"a generator from c to c channels .*, got {got}"):
        InputAwarePattern(generator, mask)


def test_given_weights_are_not_written_to():
    generator = weights()
    before = {name: value.clone() for name, value in generator.items()}
    trigger = InputAwarePattern(generator, weights(outputs=1))
    trigger(torch.rand(4, 3, 8, 8))
    assert all(torch.equal(generator[name], before[name]) for name in before)
    again = dataclasses.replace(trigger)
    shown = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(shown), trigger(shown))
