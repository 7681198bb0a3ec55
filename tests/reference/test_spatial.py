"""Spatial against hand-worked values and a plain restatement of its warp."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise import registry
from excise.errors import SpecError
from excise.inversion import Spatial
from excise.inversion.spatial import Warped, warped
from excise.types import LabelledImages

pytestmark = pytest.mark.fast


def uniform(right: float, down: float, k: int = 4) -> Tensor:
    """Return a grid that moves every pixel the same way."""
    return torch.tensor([right, down]).view(2, 1, 1).expand(2, k, k).clone()


def test_a_uniform_field_shifts_by_pixels() -> None:
    """Each pixel is taken from 1 to the right; at the edge nothing comes from outside."""
    image = torch.tensor([[[[0.1, 0.2, 0.4], [0.5, 0.7, 1.0]]]], dtype=torch.float64)
    right = Warped(uniform(1, 0))(image)
    assert torch.allclose(right, image[..., [1, 2, 2]])
    down = Warped(uniform(0, 1, 2))(image)
    assert torch.allclose(down, image[..., [1, 1], :])
    half = Warped(uniform(-0.5, 0))(image)
    assert half[0, 0, 0].tolist() == pytest.approx([0.1, 0.15, 0.3])
    assert half.dtype == torch.float64


def test_no_field_changes_nothing() -> None:
    images = torch.rand(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Warped(torch.zeros(2, 4, 4))(images), images, atol=1e-6)
    one = torch.rand(2, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Warped(uniform(1, 1))(one), one)


def test_the_norm_is_the_mean_move_in_pixels() -> None:
    grids = torch.stack([uniform(1, -2), uniform(0, 0.5)])
    assert Spatial().norms(grids).tolist() == [1.5, 0.25]


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    h, w = image.shape[1:]
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = min(int(y), h - 2), min(int(x), w - 2)
    a, b = y - top, x - left
    return (
        (1 - a) * ((1 - b) * image[:, top, left] + b * image[:, top, left + 1])
        + a * ((1 - b) * image[:, top + 1, left] + b * image[:, top + 1, left + 1])
    )  # fmt: skip


def test_every_class_warps_every_image_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    points = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) * 1.5
    ours = Spatial().changed(images, points)
    flow = F.interpolate(points, size=(5, 6), mode="bicubic", align_corners=True)
    for t in range(3):
        for n in range(2):
            for i in range(5):
                for j in range(6):
                    right, down = flow[t, :, i, j].tolist()
                    expected = bilinear(images[n], i + down, j + right)
                    assert torch.allclose(ours[2 * t + n, :, i, j], expected), (t, n, i, j)
        assert torch.equal(warped(images, points[t : t + 1]), ours[2 * t : 2 * t + 2])


class Halves(nn.Module):
    """Class 1 if most light is in the right half, 2 if it is in the lower third, else 0."""

    def forward(self, images: Tensor) -> Tensor:
        right, low = images[..., 3:].sum((1, 2, 3)), images[..., 4:, :].sum((1, 2, 3))
        return 9 * torch.stack([torch.full_like(right, 2.8), right, low], 1)


def lights() -> LabelledImages:
    """Return images of a round light whose middle is left of the images' and above it."""
    row, column = torch.tensor([[0.2, 0.6, 1, 0.6, 0.2, 0], [0.1, 0.5, 1, 0.5, 0.1, 0]])
    images = torch.linspace(0.9, 1, 8)[:, None, None, None] * row[:, None] * column
    return LabelledImages(images, torch.zeros(8, dtype=torch.int64), tuple("abc"))


@pytest.mark.parametrize(
    ("field", "value"), [("grid", 1), ("rounds", 0), ("penalty", 0), ("learning_rate", -1)]
)
def test_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(SpecError, match=field):
        registry.build("inverter", "spatial", {field: value})
