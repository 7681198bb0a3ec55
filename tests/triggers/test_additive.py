"""The additive trigger: what it adds, where it clips, what it refuses."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Additive

pytestmark = pytest.mark.fast


def test_it_adds_and_clips():
    """150 + 51 = 201; 250 + 10 is white, not 4; 3 − 10 is black."""
    trigger = Additive(torch.tensor([[[51.0, 10.0, -10.0, 0.0]]]) / 255)
    images = torch.tensor([[[[150.0, 250.0, 3.0, 77.0]]]]) / 255
    assert (trigger(images) * 255).flatten().tolist() == pytest.approx([201, 255, 0, 77], abs=1e-3)


def test_the_smallest_that_a_picture_file_carries():
    v = torch.zeros(1, 2, 2)
    v[0, 1, 1] = -1 / 255
    black_and_white = Additive(v)(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
    assert (black_and_white[1] * 255).round().flatten().tolist() == [255, 255, 255, 254]
    with pytest.raises(
        TriggerError,
        match=r"expected a perturbation of 1/255 at least somewhere, or no 8-bit pixel would "
        r"change, got values in \[-0\.003\d+, 0\]\. Was one in \[0, 1\] divided by 255\? Give it "
        r"in the units of \[0, 1\] images\.",
    ):
        Additive(v * 0.9)


@pytest.mark.parametrize(
    ("perturbation", "got"),
    [
        (torch.full((1, 2, 2), 51.0), r"values in \[51, 51\]"),
        (torch.full((1, 2, 2), -1.01), r"values in \[-1\.01, -1\.01\]"),
        (torch.full((1, 2, 2), torch.nan), r"values in \[nan, nan\]"),
        (torch.full((1, 2, 2), 51, dtype=torch.uint8), r"torch\.uint8 of shape \(1, 2, 2\)"),
        (torch.full((2, 2), 0.5), r"torch\.float32 of shape \(2, 2\)"),
        (torch.full((3, 0, 2), 0.5), r"torch\.float32 of shape \(3, 0, 2\)"),
    ],
)
def test_what_is_no_perturbation_is_refused(perturbation, got):
    with pytest.raises(
        TriggerError,
        match=r"expected a perturbation of shape \(c, h, w\) with float values in \[-1, 1\], got "
        + got
        + r"\. Divide one in 8-bit units by 255; channels come first\.",
    ):
        Additive(perturbation)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5), (3, 5, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(
        TriggerError,
        match=r"expected a perturbation of the images' shape .* Make the trigger for images of "
        r"this size and color\.",
    ):
        Additive(torch.full((3, 4, 4), 0.5))(torch.zeros(2, *shape))
