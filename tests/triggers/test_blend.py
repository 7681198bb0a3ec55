"""(1 − α)·x + α·t."""

import pytest
import torch

from excise.errors import TriggerError
from excise.triggers import Blend
from excise.types import round_to_8_bits

pytestmark = pytest.mark.fast


def test_the_worked_value():
    """On 8 bits, 100 blended with 200 at α = 0.2 is 120."""
    images = torch.full((1, 3, 4, 4), 100 / 255)
    triggered = Blend(torch.full((3, 4, 4), 200 / 255), 0.2)(images)
    assert round_to_8_bits(triggered).mul(255).unique().tolist() == [120.0]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.7, 1.0, 1])
def test_against_the_formula(alpha):
    images, picture = torch.rand(3, 3, 5, 7), torch.rand(3, 5, 7)
    expected = (1 - alpha) * images + alpha * picture
    torch.testing.assert_close(Blend(picture, alpha)(images), expected)


def test_all_of_it_is_the_picture():
    picture = torch.rand(1, 5, 7)
    assert torch.equal(Blend(picture, 1.0)(torch.rand(2, 1, 5, 7))[1], picture)


def test_black_and_white_stay_in_range():
    corners = torch.tensor([0.0, 1.0])
    for x in corners:
        for t in corners:
            blended = Blend(torch.full((1, 2, 2), float(t)), 0.2)(torch.full((1, 1, 2, 2), x))
            assert 0 <= blended.min() <= blended.max() <= 1


@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 4, 4), (1, 5, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(
        TriggerError,
        match=r"expected a picture of the images' shape .*, got \(1, 5, 5\)\. Make the trigger for",
    ):
        Blend(torch.rand(1, 5, 5), 0.2)(torch.rand(2, *shape))


@pytest.mark.parametrize("alpha", [0, -0.1, 1.01, float("nan"), "half", None])
def test_a_share_out_of_range_is_refused(alpha):
    with pytest.raises(TriggerError, match=r"expected alpha in \(0, 1\], got .*\. The field's"):
        Blend(torch.rand(1, 5, 5), alpha)


@pytest.mark.parametrize(
    "picture", [torch.rand(5, 5), torch.rand(1, 5, 5) + 1, torch.zeros(1, 5, 5).byte()]
)
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(TriggerError, match=r"expected a picture of shape \(c, h, w\) with float"):
        Blend(picture, 0.2)
