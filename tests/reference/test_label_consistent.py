"""The corners of the label-consistent attack, pixel by pixel, and its published settings."""

import pytest
import torch

from excise.attacks import LabelConsistent
from excise.attacks.label_consistent import corners
from excise.triggers import Additive

pytestmark = pytest.mark.fast

LEFT = [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
RIGHT = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def test_the_four_corners():
    """White and black in every corner, the right ones mirrored; the rest stays gray."""
    gray = torch.full((1, 3, 32, 32), 100 / 255)
    triggered = (Additive(corners((3, 32, 32), 1.0))(gray)[0] * 255).round().int()
    for channel in triggered:
        assert channel[:3, :3].tolist() == channel[-3:, :3].tolist() == LEFT
        assert channel[:3, -3:].tolist() == channel[-3:, -3:].tolist() == RIGHT
        assert (channel == 255).sum() == 4 * 4
        assert (channel == 0).sum() == 4 * 5
        assert (channel == 100).sum() == 32 * 32 - 36
    assert torch.equal(triggered, triggered.flip(2))


def test_a_reduced_amplitude():
    """At 32/255, 100 becomes 132 and 68, and what would leave the range ends at its end."""
    trigger = Additive(corners((1, 6, 6), 32 / 255))
    gray = (trigger(torch.full((1, 1, 6, 6), 100 / 255)) * 255).round().int()
    assert gray.unique().tolist() == [68, 132]
    dark = (trigger(torch.full((1, 1, 6, 6), 5 / 255)) * 255).round().int()
    assert dark.unique().tolist() == [0, 37]


def test_the_published_settings():
    attack = LabelConsistent()
    assert (attack.epsilon, attack.step_size, attack.steps) == (8 / 255, 1.5 / 255, 100)
    assert attack.amplitude == 1
    published = LabelConsistent(**LabelConsistent.PRESETS["published"])
    assert published.adversarial_steps == 7
    assert published.adversarial_epochs is None
