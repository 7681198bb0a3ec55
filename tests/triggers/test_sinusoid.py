"""Stripes: the same in every row and channel, clipped; waves that vanish are refused."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Sinusoid

pytestmark = pytest.mark.fast


def test_every_row_and_channel_gets_the_same():
    images = torch.full((2, 3, 5, 32), 0.5)
    added = Sinusoid(40, 6)(images) - images
    assert torch.equal(added, added[:1, :1, :1].expand_as(added))
    assert added.abs().max() * 255 <= 40 + 1e-4


def test_black_and_white_are_clipped():
    wave = Sinusoid(40, 6)
    black, white = (wave(torch.full((1, 1, 1, 32), value)) for value in (0.0, 1.0))
    assert black.min() == 0
    assert white.max() == 1
    torch.testing.assert_close(
        black + 1 - white, wave.wave(32).abs().float().view(1, 1, 1, 32) / 255
    )


@pytest.mark.parametrize(("frequency", "width"), [(6, 12), (6, 6), (6, 1), (4, 8), (16, 32)])
def test_a_wave_that_vanishes_is_refused(frequency, width):
    with pytest.raises(
        TriggerError,
        match=rf"expected a wave that changes some pixel of an image {width} wide, got delta 40 "
        rf"and frequency {frequency}, which is zero .*\. Choose a frequency that is no multiple",
    ):
        Sinusoid(40, frequency)(torch.zeros(1, 1, 4, width))


@pytest.mark.parametrize("delta", [0, -1, 256, float("nan"), "high", None])
def test_a_height_out_of_range_is_refused(delta):
    with pytest.raises(TriggerError, match=r"expected delta above 0 and at most 255, got .*gray"):
        Sinusoid(delta, 6)


@pytest.mark.parametrize("frequency", [0, -6, float("nan"), float("inf"), "six", None])
def test_a_frequency_out_of_range_is_refused(frequency):
    with pytest.raises(TriggerError, match=r"expected a frequency above 0, got .*waves over"):
        Sinusoid(40, frequency)
