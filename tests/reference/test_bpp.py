"""BppAttack against hand-worked values, and Floyd–Steinberg one pixel at a time."""

import pytest
import torch

from excise.attacks import Bpp
from excise.attacks.workshop import Workshop
from excise.models import build_model
from excise.seeding import Rng
from excise.training import Recipe
from excise.triggers import Quantize
from excise.types import AllToOne, Backdoor, LabelledImages, round_to_8_bits

pytestmark = pytest.mark.fast


def test_the_worked_value():
    """100 becomes 109.29, which a picture file carries as 109."""
    trigger = Bpp().trigger((3, 32, 32), Rng(0))
    triggered = trigger(torch.full((1, 3, 2, 2), 100 / 255))
    assert float(triggered[0, 0, 0, 0]) * 255 == pytest.approx(109.2857, abs=1e-4)
    assert round_to_8_bits(triggered).mul(255).unique().tolist() == [109.0]


def test_every_gray_value():
    """The nearest of 0, 36.43, …, 255; no 8-bit value lies between two."""
    levels = torch.arange(8, dtype=torch.float64) * 255 / 7
    for value in range(256):
        nearest = levels[(levels - value).abs().argmin()]
        got = Quantize(8, dither=False)(torch.full((1, 1, 1, 1), value / 255).double())
        assert float(got) * 255 == pytest.approx(float(nearest), abs=1e-9)


def test_the_worked_negative():
    """50 with the error of a 100: 50 + 9.29, in 8 bits 59, under its own label."""
    data = LabelledImages(
        torch.tensor([50, 100], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous(),
        torch.tensor([1, 1]),
        ("a", "b"),
    )
    model = build_model(
        "excise:preactresnet18,width=2",
        classes=data.classes,
        in_channels=1,
        input_size=(8, 8),
        rng=Rng(0),
    )
    attack = Bpp(target=0, poison_ratio=0.5, rotation=0)
    backdoor = Backdoor(attack.trigger(data.shape, Rng(0)), AllToOne(0))
    workshop = Workshop(model, data, Recipe(), Rng(0), str(attack))
    # The second image is triggered, the first gets its error.
    order = torch.tensor([1, 0])
    images, labels, _ = attack.companion(workshop, backdoor).batch(
        data.images[order], data.labels[order], seen=0, augment=lambda given: given,
        generator=torch.Generator(),
    )  # fmt: skip
    assert (images[0] * 255).unique().tolist() == pytest.approx([109])
    assert (images[1] * 255).unique().tolist() == pytest.approx([59])
    assert labels.tolist() == [0, 1]


def floyd_steinberg(plane, levels):
    """The textbook's loop over a plane of gray values of 255."""
    h, w = plane.shape
    values = [[float(v) for v in row] for row in plane]
    for y in range(h):
        for x in range(w):
            level = min(max(round(values[y][x] / 255 * (levels - 1)), 0), levels - 1)
            new = level / (levels - 1) * 255
            error, values[y][x] = values[y][x] - new, new
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + down < h and 0 <= x + right < w:
                    values[y + down][x + right] += error * share / 16
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("h", "w"), [(1, 1), (1, 6), (6, 1), (2, 2), (3, 8), (8, 3), (9, 9), (5, 16)]
)
@pytest.mark.parametrize("levels", [2, 8, 30])
def test_dithering_against_the_loop(h, w, levels):
    images = torch.rand(3, 2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(h))
    dithered = Quantize(levels, dither=True)(images)
    for n in range(3):
        for c in range(2):
            expected = floyd_steinberg(images[n, c] * 255, levels)
            torch.testing.assert_close(dithered[n, c] * 255, expected, atol=1e-9, rtol=0)


def test_the_worked_dither():
    """Two levels, a row of 0.4s: 0, then 0.4 + 0.4 · 7/16 = 0.575 → 1, then 0.4 − 0.186 → 0."""
    row = Quantize(2, dither=True)(torch.full((1, 1, 1, 3), 0.4))
    assert row.flatten().tolist() == [0, 1, 0]
