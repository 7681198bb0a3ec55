"""Raised frequencies: luma stays, gray images have their own, edges beside windows stay."""

import pytest
import torch

from excise.dct import dct2
from excise.errors import TriggerError
from excise.triggers import FTrojan

pytestmark = pytest.mark.fast


def test_no_eye_sees_it():
    """A few gray values at most, and none of brightness."""
    images = torch.rand(1, 3, 32, 32) * 0.8 + 0.1
    added = (FTrojan(30, 32)(images) - images)[0] * 255
    assert added.abs().amax((1, 2)).tolist() == pytest.approx([4.48, 3.38, 5.66], abs=0.01)
    luma = 0.299 * added[0] + 0.587 * added[1] + 0.114 * added[2]
    assert luma.abs().max() < 1e-3


def test_gray_images_have_no_chroma():
    """Their own middle and highest frequencies are raised."""
    images = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)
    added = dct2((FTrojan(30, 32)(images) - images)[0, 0] * 255)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[3, 3] = expected[7, 7] = 30
    torch.testing.assert_close(added, expected, atol=1e-10, rtol=0)


def test_what_is_left_beside_whole_windows_stays():
    images = torch.full((1, 3, 11, 9), 0.5)
    changed = (FTrojan(30, 4)(images) != images).any(1)[0]
    for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
        assert changed[top : top + 4, left : left + 4].any()
    assert not changed[8:].any()
    assert not changed[:, 8:].any()


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 3, 8), (1, 8, 3)])
def test_images_that_do_not_fit_are_refused(shape):
    c, h, w = shape
    with pytest.raises(
        TriggerError,
        match=rf"expected gray or RGB images of at least 4 × 4 pixels, got {c} channels of "
        rf"{h} × {w}\. Convert or enlarge",
    ):
        FTrojan(30, 32)(torch.zeros(1, *shape))


@pytest.mark.parametrize("magnitude", [0, -30, 1e5, float("nan"), "loud", None])
def test_a_magnitude_out_of_range_is_refused(magnitude):
    with pytest.raises(TriggerError, match=r"expected a magnitude above 0 .*the published is 30"):
        FTrojan(magnitude, 32)


@pytest.mark.parametrize("window", [3, 0, -32, 32.0, "all", None])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(TriggerError, match=r"expected a window of 4 pixels or more, got .*middle"):
        FTrojan(30, window)
