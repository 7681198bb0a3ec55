"""x ← x + opacity · (picture − x), layer after layer."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Layers

pytestmark = pytest.mark.fast


def full(value, k=1, size=4):
    return torch.full((k, 1, size, size), value)


def test_the_worked_value():
    """Black under half of 0.8 is 0.4; half of what is left to white is 0.7."""
    pictures = torch.cat([full(0.8), full(1.0)])
    trigger = Layers(pictures, torch.full((2, 4, 4), 0.5))
    triggered = trigger(torch.zeros(1, 1, 4, 4))
    torch.testing.assert_close(triggered, torch.full((1, 1, 4, 4), 0.7))


def test_against_the_formula():
    generator = torch.Generator().manual_seed(0)
    pictures, opacities = (
        torch.rand(3, 2, 5, 7, generator=generator),
        torch.rand(3, 5, 7, generator=generator),
    )
    images = torch.rand(4, 2, 5, 7, generator=generator)
    expected = images
    for picture, opacity in zip(pictures, opacities, strict=True):
        expected = expected + opacity * (picture - expected)
    torch.testing.assert_close(Layers(pictures, opacities)(images), expected)


def test_a_later_layer_lies_on_top():
    opacities = torch.zeros(2, 4, 4)
    opacities[0, :2], opacities[1, 1:3] = 1, 1
    triggered = Layers(torch.cat([full(0.25), full(0.75)]), opacities)(torch.ones(1, 1, 4, 4))
    assert triggered[0, 0, :, 0].tolist() == [0.25, 0.75, 0.75, 1.0]


def test_opacity_0_and_1_are_exact():
    opacities = torch.zeros(1, 4, 4)
    opacities[0, 0] = 1
    images = torch.rand(3, 1, 4, 4)
    picture = torch.rand(1, 1, 4, 4)
    triggered = Layers(picture, opacities)(images)
    assert torch.equal(triggered[:, :, 1:], images[:, :, 1:])
    assert torch.equal(triggered[:, 0, 0], picture[0, 0, :1].expand(3, 4))


def test_one_layer_alone():
    opacities = torch.stack([torch.full((4, 4), 0.5), torch.eye(4)])
    trigger = Layers(torch.cat([full(0.2), full(0.9)]), opacities)
    alone = trigger.single(1)
    assert torch.equal(alone.pictures, full(0.9))
    assert torch.equal(alone.opacities, torch.eye(4)[None])
    assert len(trigger.pictures) == 2


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 5, 4), (1, 4, 5)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(
        TriggerError,
        match=r"expected layers of the images' shape .*, got \(1, 4, 4\)\. Make the trigger for",
    ):
        Layers(full(1.0), torch.ones(1, 4, 4))(torch.rand(2, *shape))


@pytest.mark.parametrize(
    "opacities",
    [
        torch.zeros(1, 4, 4),
        torch.full((1, 4, 4), 1.1),
        torch.full((1, 4, 4), -0.1),
        torch.full((1, 4, 4), float("nan")),
        torch.ones(4, 4),
        torch.ones(2, 4, 4),
        torch.ones(1, 1, 4, 4),
        torch.ones(1, 4, 4, dtype=torch.bool),
    ],
)
def test_what_is_no_opacity_is_refused(opacities):
    with pytest.raises(
        TriggerError,
        match=r"expected opacities of shape \(1, 4, 4\), floats in \[0, 1\], not all 0, got .*Give",
    ):
        Layers(full(1.0), opacities)


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (torch.rand(1, 4, 4), r"pictures of shape \(k, c, h, w\), k at least 1, got \(1, 4, 4\)"),
        (torch.rand(0, 1, 4, 4), r"k at least 1, got \(0, 1, 4, 4\)\. Stack one"),
        (full(2.0), r"a picture of shape \(c, h, w\) with float values in \[0, 1\]"),
        (full(1.0).byte(), r"a picture of shape \(c, h, w\) with float values in \[0, 1\]"),
    ],
)
def test_what_is_no_picture_is_refused(pictures, expected):
    with pytest.raises(TriggerError, match=expected):
        Layers(pictures, torch.ones(1, 4, 4))
