"""The encoder that hides a secret in an image."""

import pytest
import torch
import torch.nn.functional as F

from excise.errors import TriggerError
from excise.testing.guards import nothing_global_changes
from excise.triggers import Ssba, load_trigger, save_trigger
from excise.triggers.chunks import CHUNK, in_chunks
from excise.triggers.ssba import encoder_shapes, hide

pytestmark = pytest.mark.fast


def weights(bits=4, channels=3, width=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in encoder_shapes(bits, channels, width).items()
    }


SECRET = torch.tensor([1.0, 0.0, 1.0, 1.0])


def test_stegastamps_size():
    """At width 32 with 100 bits: 100 → 3·16·16, then the published convolutions."""
    shapes = encoder_shapes(100, 3, 32)
    assert shapes["secret_weight"] == (768, 100)
    assert shapes["conv1_weight"] == (32, 6, 3, 3)
    assert shapes["conv5_weight"] == (256, 128, 3, 3)
    assert shapes["up6_weight"] == (128, 256, 2, 2)
    assert shapes["conv9_weight"] == (32, 70, 3, 3)
    assert shapes["residual_weight"] == (3, 32, 1, 1)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_060_067


def test_it_adds_the_residual_and_clips():
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    made = weights()
    residual = hide(made, SECRET.expand(3, -1), images)
    expected = (images + residual).clamp(0, 1)
    assert ((images + residual) != expected).any(), "nothing to clip: a weak test"
    torch.testing.assert_close(Ssba(made, SECRET)(images), expected)


def test_weights_of_another_type_are_taken_as_float32():
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    wide = {name: weight.double() for name, weight in weights().items()}
    assert torch.equal(Ssba(wide, SECRET)(images), Ssba(weights(), SECRET)(images))


def test_another_secret_and_another_image_give_another_residual():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    made = {name: weight * 0.5 for name, weight in weights().items()}
    one, other = Ssba(made, SECRET)(images), Ssba(made, 1 - SECRET)(images)
    assert not torch.equal(one, other)
    changes = one - images
    assert (changes[0] - changes[1]).abs().max() > 0.01 * changes.abs().max()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (16, 16), (17, 33), (32, 32)])
def test_any_size(size):
    images = torch.rand(2, 1, *size)
    assert Ssba(weights(channels=1), SECRET)(images).shape == images.shape


def test_the_secret_reaches_every_pixel_of_a_small_image_and_of_a_large_one():
    """With the image's path cut, what is left is the plane of the secret, stretched."""
    made = {name: torch.zeros(shape) for name, shape in encoder_shapes(1, 1, 1).items()}
    made["secret_bias"] = torch.arange(256.0)
    made["conv9_weight"][0, 2, 1, 1] = 1  # the plane, after conv1 and up9
    made["residual_weight"].fill_(1)
    for side in (8, 16, 32):
        shown = hide(made, torch.zeros(1, 1), torch.zeros(1, 1, side, side))
        plane = torch.arange(256.0).view(1, 1, 16, 16)
        assert torch.equal(shown, F.interpolate(plane, size=(side, side)))


def test_skip_connections_are_not_shifted():
    """A 2 × 2 kernel reaches one pixel right and down, as Keras pads, never left or up."""
    made = {name: torch.zeros(shape) for name, shape in encoder_shapes(1, 1, 1).items()}
    made["conv1_weight"][0, 1, 1, 1] = made["conv2_weight"][0, 0, 1, 1] = 1
    made["conv8_weight"][0, 0, 1, 1] = 1  # the skip connection from conv2
    made["up9_weight"][0, 0, 1, 1] = 1  # takes the pixel below and to the right
    made["conv9_weight"][0, 1, 1, 1] = made["residual_weight"][0, 0, 0, 0] = 1
    images = torch.full((1, 1, 4, 4), 0.5)
    images[0, 0, 2, 2] = 1.0
    shown = hide(made, torch.zeros(1, 1), images)[0, 0]
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = 0.5  # conv2's pixel (1, 1) is rows and columns 2 and 3, moved up and left
    assert torch.equal(shown, expected)


def test_no_generator_moves_when_one_is_made(tmp_path):
    with nothing_global_changes():
        trigger = Ssba(weights(), SECRET)
        save_trigger(tmp_path, trigger)
        loaded = load_trigger(tmp_path)
    assert torch.equal(loaded.secret, SECRET)
    assert loaded.weights.keys() == trigger.weights.keys()


@pytest.mark.parametrize(
    "secret", [torch.rand(4), torch.tensor(1.0), torch.empty(0), torch.full((4,), float("nan"))]
)
def test_what_is_no_secret_is_refused(secret):
    with pytest.raises(TriggerError, match=r"expected a secret of shape \(bits,\) of zeros and on"):
        Ssba(weights(), secret)


def test_weights_of_another_encoder_are_refused():
    wrong = weights() | {"conv3_bias": torch.zeros(7)}
    with pytest.raises(TriggerError, match=r"an encoder of 4 bits, got conv3_bias: \(7,\)\. Give"):
        Ssba(wrong, SECRET)
    with pytest.raises(TriggerError, match=r"got secret_weight: \(768, 4\)"):
        Ssba(weights(), torch.ones(5))
    few = weights()
    del few["up7_bias"]
    with pytest.raises(TriggerError, match="got up7_bias: missing"):
        Ssba(few, SECRET)
    with pytest.raises(TriggerError, match="got more: "):
        Ssba(weights() | {"more": torch.zeros(1)}, SECRET)
    with pytest.raises(TriggerError, match="of an encoder of 4 bits"):
        Ssba({}, SECRET)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(TriggerError, match="got NaN or infinity in conv5_weight"):
        Ssba(weights() | {"conv5_weight": torch.full((16, 8, 3, 3), torch.inf)}, SECRET)


def test_images_of_other_channels_are_refused():
    with pytest.raises(TriggerError, match="expected images of 3 channels, like those the encoder"):
        Ssba(weights(), SECRET)(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_chunks_see_the_same_number_of_images_each_time(n):
    images = torch.rand(n, 1, 3, 2)
    seen = []

    def network(chunk):
        seen.append((tuple(chunk.shape), chunk.is_contiguous(), torch.is_grad_enabled()))
        return chunk * 2

    with torch.enable_grad():
        result = in_chunks(network, images.to(torch.float64).requires_grad_())
    assert torch.equal(result, images * 2)
    assert set(seen) == {((CHUNK, 1, 3, 2), True, False)}


def test_autocast_around_it_changes_nothing():
    images = torch.rand(2, 3, 8, 8)
    trigger = Ssba(weights(), SECRET)
    with torch.autocast("cpu", torch.bfloat16):
        inside = trigger(images)
    assert torch.equal(inside, trigger(images))
