"""Few gray levels, plain and dithered."""

import time

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Quantize
from excise.types import round_to_8_bits

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 8, 255])
def test_only_these_levels_are_left(levels, dither):
    images = torch.rand(20, 3, 16, 16)
    left = Quantize(levels, dither)(images) * (levels - 1)
    torch.testing.assert_close(left, left.round())
    assert 2 <= len(left.round().unique()) <= levels


def test_twice_is_once():
    images = torch.rand(4, 3, 8, 8)
    for dither in (False, True):
        once = round_to_8_bits(Quantize(8, dither)(images))
        again = round_to_8_bits(Quantize(8, dither=False)(once))
        assert torch.equal(once, again)


def test_dithering_keeps_the_brightness_of_a_region_and_rounding_does_not():
    images = torch.full((1, 1, 32, 32), 0.45)
    assert float(Quantize(2, dither=True)(images).mean()) == pytest.approx(0.45, abs=0.01)
    assert float(Quantize(2, dither=False)(images).mean()) == 0


def test_black_and_white_stay():
    for value in (0.0, 1.0):
        images = torch.full((1, 1, 6, 6), value)
        assert torch.equal(Quantize(8, dither=True)(images), images)


def test_dithering_never_leaves_the_range():
    """The error carried to a bright pixel does not lift it above white."""
    images = torch.where(torch.rand(20, 1, 16, 16) < 0.5, 0.92, 1.0)
    dithered = Quantize(8, dither=True)(images)
    assert dithered.max() == 1
    assert dithered.min() >= 0


def test_dithering_many_images_is_quick():
    """One pass over the pixels for all of them: a loop over images would take minutes."""
    images = torch.rand(2000, 3, 32, 32)
    start = time.process_time()
    Quantize(8, dither=True)(images)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("levels", [1, 0, -8, 256, 8.0, "few", None])
def test_a_number_of_levels_that_is_none_is_refused(levels):
    with pytest.raises(
        TriggerError, match=r"expected 2 to 255 levels, got .*\. 256 would leave an 8-bit image"
    ):
        Quantize(levels, dither=False)
