"""FTrojan against hand-worked values, and step by step as the paper has it."""

import math

import pytest
import torch

from excise.attacks import FTrojan
from excise.dct import dct2, idct2
from excise.seeding import Rng
from excise.triggers.ftrojan import rgb_of_chroma

pytestmark = pytest.mark.fast


def step_by_step(images, magnitude, window):
    """RGB → YCrCb → DCT of each window → two coefficients of Cr and Cb → all the way back."""
    result = images * 255
    for n in range(len(images)):
        r, g, b = result[n].clone()
        y = 0.299 * r + 0.587 * g + 0.114 * b
        chroma = [(r - y) * 0.713 + 128, (b - y) * 0.564 + 128]
        for channel in chroma:
            h, w = (min(window, size) for size in channel.shape)
            for top in range(0, channel.shape[0] - h + 1, h):
                for left in range(0, channel.shape[1] - w + 1, w):
                    part = channel[top : top + h, left : left + w]
                    coefficients = dct2(part.clone())
                    coefficients[h // 2 - 1, w // 2 - 1] += magnitude
                    coefficients[h - 1, w - 1] += magnitude
                    part.copy_(idct2(coefficients))
        r = y + (chroma[0] - 128) / 0.713
        b = y + (chroma[1] - 128) / 0.564
        g = (y - 0.299 * r - 0.114 * b) / 0.587
        result[n] = torch.stack([r, g, b])
    return (result / 255).clamp(0, 1)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((32, 32), 32), ((64, 96), 32), ((24, 40), 32), ((8, 8), 32), ((19, 9), 5), ((4, 7), 32)],
)
def test_against_the_steps_of_the_paper(shape, window):
    images = torch.rand(3, 3, *shape, dtype=torch.float64)
    trigger = FTrojan(window=window, magnitude=40.0).trigger((3, *shape), Rng(0))
    expected = step_by_step(images, 40.0, window)
    torch.testing.assert_close(trigger(images), expected, atol=1e-9, rtol=0)


def test_the_upper_left_pixel():
    """30/16 · (cos²(15π/64) + cos²(31π/64)) = 1.0339 of Cr and Cb: 1.450, −1.095, 1.833 of RGB."""
    worked = 30 / 16 * (math.cos(15 * math.pi / 64) ** 2 + math.cos(31 * math.pi / 64) ** 2)
    assert worked == pytest.approx(1.0339, abs=1e-4)
    gray = torch.full((1, 3, 32, 32), 0.5)
    added = (FTrojan().trigger((3, 32, 32), Rng(0))(gray) - gray)[0] * 255
    torch.testing.assert_close(
        added[:, 0, 0], torch.tensor([1.450, -1.095, 1.833]), atol=1e-3, rtol=0
    )


def ycrcb(red, green, blue):
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return y, (red - y) * 0.713 + 127.5, (blue - y) * 0.564 + 127.5


def test_the_published_coefficients():
    """(15, 15) and (31, 31) of both chroma channels change by 30, in every window; luma does not.

    Magnitudes are of gray values of 255.
    """
    images = torch.full((1, 3, 64, 32), 0.5, dtype=torch.float64)
    changed = FTrojan().trigger((3, 64, 32), Rng(0))(images)
    before, after = (ycrcb(*given[0] * 255) for given in (images, changed))
    assert (after[0] - before[0]).abs().max() < 1e-10
    expected = torch.zeros(32, 32, dtype=torch.float64)
    expected[15, 15] = expected[31, 31] = 30
    for k in (1, 2):
        for window in (after[k] - before[k]).split(32):
            torch.testing.assert_close(dct2(window), expected, atol=1e-9, rtol=0)


def test_the_color_conversion():
    """A change of chroma alone: what the forward conversion says of it afterwards."""
    cr, cb = torch.rand(2, 4, 5, dtype=torch.float64)
    y, got_cr, got_cb = ycrcb(*rgb_of_chroma(cr, cb))
    assert y.abs().max() < 1e-15
    torch.testing.assert_close(got_cr - 127.5, cr, atol=1e-12, rtol=0)
    torch.testing.assert_close(got_cb - 127.5, cb, atol=1e-12, rtol=0)
    # Pure red: Y 76.245, and so much more of Cr than gray.
    red = torch.tensor(255.0), torch.tensor(0.0), torch.tensor(0.0)
    assert [float(v) for v in ycrcb(*red)] == pytest.approx([76.245, 254.952, 84.498], abs=1e-3)
