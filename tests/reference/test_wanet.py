"""WaNet against hand-worked values, and the warp one pixel at a time."""

import pytest
import torch

from excise.attacks import WaNet
from excise.seeding import Rng
from excise.triggers import Warp
from excise.types import round_to_8_bits

pytestmark = pytest.mark.fast


def warped(image, flow):
    """One plane, every pixel from where the flow says, bilinearly; both in float64."""
    h, w = image.shape
    result = torch.empty_like(image)
    for i in range(h):
        for j in range(w):
            right = min(max(2 * j / (w - 1) - 1 + float(flow[0, i, j]), -1), 1)
            below = min(max(2 * i / (h - 1) - 1 + float(flow[1, i, j]), -1), 1)
            x, y = (right + 1) / 2 * (w - 1), (below + 1) / 2 * (h - 1)
            left, top = min(int(x), w - 2), min(int(y), h - 2)
            a, b = x - left, y - top
            upper = (1 - a) * image[top, left] + a * image[top, left + 1]
            lower = (1 - a) * image[top + 1, left] + a * image[top + 1, left + 1]
            result[i, j] = (1 - b) * upper + b * lower
    return result


@pytest.mark.parametrize(("h", "w"), [(8, 8), (5, 9), (9, 5)])
@pytest.mark.parametrize("strength", [0.5, 3.0, 20.0])
def test_against_the_formula(h, w, strength):
    images = torch.rand(2, 3, h, w, dtype=torch.float64)
    trigger = WaNet(strength=strength).trigger((3, h, w), Rng(1))
    triggered = trigger(images)
    for n in range(2):
        for c in range(3):
            expected = warped(images[n, c], trigger.flow)
            torch.testing.assert_close(triggered[n, c], expected, atol=1e-6, rtol=0)


def test_no_strength_is_the_identity():
    images = torch.rand(3, 3, 32, 24)
    still = Warp(torch.zeros(2, 32, 24))
    torch.testing.assert_close(still(images), images, atol=1e-5, rtol=0)
    rounded = round_to_8_bits(images)
    assert torch.equal(round_to_8_bits(still(rounded)), rounded)


def test_one_pixel_to_the_right_and_one_down():
    """2/(w − 1) to the right is the right neighbor; 2/(h − 1) downward is the one below."""
    images = torch.rand(1, 1, 6, 9)
    for axis, size in ((0, 9), (1, 6)):
        flow = torch.zeros(2, 6, 9)
        flow[axis] = 2 / (size - 1)
        moved = Warp(flow)(images)
        dim = 3 - axis
        inner, last = moved.narrow(dim, 0, size - 1), moved.narrow(dim, size - 1, 1)
        expected = images.narrow(dim, 1, size - 1)
        torch.testing.assert_close(inner, expected, atol=1e-5, rtol=0)
        # At the edge nothing comes from outside: the last pixel stays.
        torch.testing.assert_close(last, images.narrow(dim, size - 1, 1), atol=1e-5, rtol=0)


def test_the_published_field():
    """4 × 4 points of mean size 1, times 0.5/32, at the corners of a bicubic 32 × 32 field."""
    points = torch.rand(2, 4, 4, generator=Rng(3).torch("flow")) * 2 - 1
    points /= points.abs().mean()
    flow = WaNet().trigger((3, 32, 32), Rng(3)).flow
    assert flow.shape == (2, 32, 32)
    for row in (0, -1):
        for column in (0, -1):
            expected = 0.5 / 32 * points[:, row, column]
            torch.testing.assert_close(flow[:, row, column], expected, atol=1e-7, rtol=1e-5)
    # As many points as pixels: nothing is in between, and the mean is seen directly.
    same = WaNet(grid_size=8).trigger((3, 8, 8), Rng(3)).flow
    assert float(same.abs().mean()) * 8 / 0.5 == pytest.approx(1)


def test_the_noise_is_half_a_pixel_at_most():
    """Uniform in ±1/W and ±1/H where the image is 2 wide and 2 high, another for every image."""
    ramp = torch.linspace(0, 1, 41)
    for axis in (0, 1):
        images = ramp.expand(200, 1, 9, 41) if axis == 0 else ramp[:, None].expand(200, 1, 41, 9)
        warp = Warp(torch.zeros(2, *images.shape[2:]))
        moved = warp.noisy(images, torch.Generator().manual_seed(0)) - images
        pixels = moved.select(3 - axis, 20) * 40
        assert pixels.abs().max() <= 40 / 41 / 2 + 1e-4
        assert float(pixels.std()) == pytest.approx(40 / 41 / 12**0.5, rel=0.05)
        assert not torch.equal(moved[0], moved[1])
