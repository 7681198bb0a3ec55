"""SIG against hand-worked values and the formula, one pixel at a time."""

import math

import pytest
import torch

from excise.attacks import Sig
from excise.seeding import Rng
from excise.triggers import Sinusoid

pytestmark = pytest.mark.fast


def test_the_worked_values():
    """Δ = 40, f = 6, 32 columns: 0, 36.955 and 28.284 in the first three, in every row."""
    images = torch.full((1, 3, 32, 32), 0.5)
    trigger = Sig().trigger((3, 32, 32), Rng(0))
    added = (trigger(images) - images) * 255
    for column, value in enumerate((0, 36.955, 28.284)):
        expected = torch.full((3, 32), float(value))
        torch.testing.assert_close(added[0, :, :, column], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("delta", "frequency"), [(40.0, 6.0), (20.0, 6.0), (13.0, 2.5)])
def test_against_the_formula(delta, frequency):
    images = torch.rand(2, 1, 5, 7, dtype=torch.float64)
    triggered = Sinusoid(delta, frequency)(images)
    for n in range(2):
        for i in range(5):
            for j in range(7):
                added = delta * math.sin(2 * math.pi * j * frequency / 7)
                expected = min(max(float(images[n, 0, i, j]) * 255 + added, 0), 255)
                assert float(triggered[n, 0, i, j]) * 255 == pytest.approx(expected, abs=1e-9)
