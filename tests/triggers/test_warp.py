"""A warp: the same for every image and channel; what is no field is refused."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Warp

pytestmark = pytest.mark.fast


def test_even_colors_stay():
    """Nothing comes from outside the image: its edges do not darken."""
    warp = Warp(torch.randn(2, 9, 7))
    for value in (0.0, 0.3, 1.0):
        images = torch.full((2, 3, 9, 7), value)
        torch.testing.assert_close(warp(images), images)


def test_a_mirror_is_a_warp():
    """Twice the way to the middle."""
    flow = torch.zeros(2, 5, 6)
    flow[0] = -2 * torch.linspace(-1, 1, 6)
    images = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(Warp(flow)(images), images.flip(3), atol=1e-5, rtol=0)


def test_noise_is_drawn_from_the_generator_alone():
    warp, images = Warp(torch.zeros(2, 8, 8)), torch.rand(2, 1, 8, 8)
    before, state = images.clone(), torch.random.get_rng_state()
    one, same, other = (
        warp.noisy(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert 0 <= one.min() <= one.max() <= 1


@pytest.mark.parametrize("size", [(8, 9), (9, 8)])
def test_images_of_another_size_are_refused(size):
    h, w = size
    with pytest.raises(
        TriggerError,
        match=rf"expected a flow for images of {h} × {w} pixels, got 8 × 8\. Make the trigger for",
    ):
        Warp(torch.zeros(2, 8, 8))(torch.zeros(1, 3, h, w))


@pytest.mark.parametrize(
    "flow",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8),
        torch.zeros(2, 0, 8),
        torch.zeros(2, 8, 8, dtype=torch.int64),
        torch.full((2, 8, 8), float("nan")),
        torch.full((2, 8, 8), float("inf")),
    ],
)
def test_what_is_no_field_is_refused(flow):
    with pytest.raises(
        TriggerError, match=r"expected a flow of shape \(2, h, w\) of finite floats, got torch"
    ):
        Warp(flow)
