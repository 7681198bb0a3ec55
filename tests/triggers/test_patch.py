"""Pixels replaced where the mask is set, and nowhere else."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Patch

pytestmark = pytest.mark.fast


def square(size=3, channels=3, row=-3, column=-3, value=1.0):
    pattern = torch.full((channels, size, size), value)
    return Patch(pattern, torch.ones(size, size, dtype=torch.bool), row, column)


def test_the_fields_default():
    """White at rows and columns 29 to 31 of a 32 × 32 image."""
    images = torch.rand(2, 3, 32, 32)
    triggered = square()(images)
    expected = images.clone()
    for row in (29, 30, 31):
        for column in (29, 30, 31):
            expected[:, :, row, column] = 1.0
    assert torch.equal(triggered, expected)


@pytest.mark.parametrize("place", [(0, 0), (2, 5), (-3, 0), (-8, -4), (5, 5)])
def test_negative_places_count_from_the_far_edge(place):
    row, column = place
    triggered = square(channels=1, row=row, column=column)(torch.zeros(1, 1, 8, 8))
    expected = torch.zeros(8, 8)
    top, left = row % 8, column % 8
    expected[top : top + 3, left : left + 3] = 1
    assert torch.equal(triggered[0, 0], expected)


def test_black_is_a_color_like_any_other():
    triggered = square(value=0.0)(torch.ones(1, 3, 8, 8))
    assert (triggered == 0).sum() == 27


def test_only_what_the_mask_names_is_replaced():
    mask = torch.tensor([[True, False], [False, True]])
    pattern = torch.tensor([[[0.1, 0.9], [0.9, 0.2]]])
    triggered = Patch(pattern, mask, 1, 1)(torch.full((1, 1, 4, 4), 0.5))
    expected = torch.full((4, 4), 0.5)
    expected[1, 1], expected[2, 2] = 0.1, 0.2
    assert torch.equal(triggered[0, 0], expected)


def test_a_patch_as_large_as_the_image():
    assert (square(8, 1, 0, 0)(torch.zeros(2, 1, 8, 8)) == 1).all()
    assert (square(8, 1, -8, -8)(torch.zeros(2, 1, 8, 8)) == 1).all()


@pytest.mark.parametrize("place", [(6, 0), (0, 6), (-2, 0), (0, -1), (-9, 0), (0, 99)])
def test_a_patch_that_reaches_out_of_the_image_is_refused(place):
    with pytest.raises(
        TriggerError,
        match=rf"expected a patch inside the 8 × 8 image, got 3 × 3 pixels at row {place[0]}, "
        rf"column {place[1]}\. Choose a smaller patch or another place\.",
    ):
        square(3, 1, *place)(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(("channels", "images"), [(3, 1), (1, 3)])
def test_a_patch_of_other_channels_is_refused(channels, images):
    with pytest.raises(
        TriggerError,
        match=rf"expected a patch of {images} channels, like the images, got {channels}\. Convert",
    ):
        square(channels=channels)(torch.zeros(1, images, 8, 8))


ONES = torch.ones(1, 2, 2)
MASK = torch.ones(2, 2, dtype=torch.bool)
REFUSED = {
    "two dimensions": ((ONES[0], MASK, 0, 0), r"expected a pattern of shape \(c, h, w\) with float "
                       r"values in \[0, 1\], got torch.float32 of shape \(2, 2\)\. Divide 8-bit"),
    "8 bits": ((ONES.byte(), MASK, 0, 0), r"got torch.uint8 of shape \(1, 2, 2\)"),
    "nothing": ((ONES[:, :0], MASK[:0], 0, 0), r"of shape \(1, 0, 2\)"),
    "too bright": ((ONES * 255, MASK, 0, 0), r"got values in \[255, 255\]"),
    "negative": ((-ONES, MASK, 0, 0), r"got values in \[-1, -1\]"),
    "NaN": ((ONES * float("nan"), MASK, 0, 0), r"got values in \[nan, nan\]"),
    "a mask of another size": ((ONES, MASK[:1], 0, 0), r"expected a bool mask of shape \(2, 2\), "
                               r"like the pattern, got torch.bool of shape \(1, 2\)\. Set"),
    "a mask of numbers": ((ONES, MASK.float(), 0, 0), r"got torch.float32 of shape \(2, 2\)"),
    "a fraction of a row": ((ONES, MASK, 0.5, 0), r"expected row and column as whole numbers, got "
                            r"0\.5 and 0\. Count from 0"),
    "a word": ((ONES, MASK, 0, "left"), r"got 0 and 'left'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_patch_is_refused(case):
    given, message = REFUSED[case]
    with pytest.raises(TriggerError, match=message):
        Patch(*given)
