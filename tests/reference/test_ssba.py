"""SSBA against what its papers and published code say, restated here from the specification.

The encoder below is a literal, slow restatement of StegaStamp's U-Net with Keras's conventions
(padding "same": a row and a column at the end for a kernel of 2), for square images whose side is a
multiple of 16.
"""

import pytest
import torch
import torch.nn.functional as F

from excise.attacks import SSBA
from excise.triggers.ssba import encoder_shapes, hide

pytestmark = pytest.mark.fast


def keras_same(maps, weight, bias, stride=1):
    """Keras's "same": ⌈n / stride⌉ results, the odd pixel of padding at the end."""
    n, k = maps.shape[-1], weight.shape[-1]
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    before, after = total // 2, total - total // 2
    return F.conv2d(F.pad(maps, (before, after, before, after)), weight, bias, stride)


def stegastamp(weights, secrets, images):
    """The U-Net at stride 1 as Keras has it; strided layers pad evenly, as torch ports do."""

    def layer(name, maps, stride=1):
        weight, bias = weights[f"{name}_weight"], weights[f"{name}_bias"]
        if stride == 2:
            return F.conv2d(maps, weight, bias, 2, 1).relu()
        return keras_same(maps, weight, bias).relu()

    def double(maps):
        return maps.repeat_interleave(2, -1).repeat_interleave(2, -2)

    n, c, side, _ = images.shape
    plane = ((secrets - 0.5) @ weights["secret_weight"].T + weights["secret_bias"]).relu()
    plane = plane.reshape(n, c, 16, 16).repeat_interleave(side // 16, -1)
    plane = plane.repeat_interleave(side // 16, -2)
    inputs = torch.cat([plane, images - 0.5], 1)
    one = layer("conv1", inputs)
    two = layer("conv2", one, 2)
    three = layer("conv3", two, 2)
    four = layer("conv4", three, 2)
    five = layer("conv5", four, 2)
    six = layer("conv6", torch.cat([four, layer("up6", double(five))], 1))
    seven = layer("conv7", torch.cat([three, layer("up7", double(six))], 1))
    eight = layer("conv8", torch.cat([two, layer("up8", double(seven))], 1))
    nine = layer("conv9", torch.cat([one, layer("up9", double(eight)), inputs], 1))
    return keras_same(nine, weights["residual_weight"], weights["residual_bias"])


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (3, 32), (3, 48)])
def test_the_encoder_is_stegastamps(channels, side):
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in encoder_shapes(5, channels, 2).items()
    }
    images = torch.rand(2, channels, side, side, generator=generator)
    secrets = torch.randint(0, 2, (2, 5), generator=generator).float()
    expected = stegastamp(weights, secrets, images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(hide(weights, secrets, images), expected)


def test_the_published_settings():
    """The field's encoder: 100 bits, Adam 1e-4, 20 epochs of 64; λ from 0 to 10 in 3000 steps."""
    attack = SSBA(**SSBA.PRESETS["field"])
    assert (attack.bits, attack.width, attack.batch_size) == (100, 32, 64)
    assert (attack.encoder_epochs, attack.learning_rate) == (20, 1e-4)
    assert (attack.image_weight, attack.image_wait, attack.image_ramp) == (10, 1000, 3000)
    assert (attack.target, attack.poison_ratio, attack.shift) == (0, 0.1, 0)


@pytest.mark.parametrize(
    ("step_since_read", "weight"),
    [(0, 0.0), (999, 0.0), (1000, 0.0), (1003, 0.01), (2500, 5.0), (4000, 10.0), (100_000, 10.0)],
)
def test_the_weight_of_the_images(step_since_read, weight):
    """min(max(0, 10 · (steps − 1000) / 3000), 10), as published."""
    assert SSBA().weight_after(step_since_read) == pytest.approx(weight)
