"""PGD and DeepFool on networks small enough to do by hand."""

import pytest
import torch
from torch import nn

from excise.training.perturb import deepfool, pgd

pytestmark = pytest.mark.fast


def linear(*rows, bias=None):
    """A network on one-row images: logits are the rows times the pixels."""
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data = torch.tensor(rows)
    layer.bias.data = torch.zeros(len(rows)) if bias is None else torch.tensor(bias)
    return nn.Sequential(nn.Flatten(), layer)


def image(*pixels):
    return torch.tensor([[[list(pixels)]]])


def pixels_of(images):
    return images.flatten().tolist()


def test_pgd_goes_against_the_label_until_the_ball_ends():
    """Logits (x₁, x₂), label 0: x₁ falls, x₂ rises, a third pixel that says nothing stays."""
    network = linear([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    given, label = image(0.5, 0.5, 0.5), torch.tensor([0])
    after = {
        steps: pgd(network, given, label, epsilon=0.15, step_size=0.1, steps=steps)
        for steps in (1, 2, 9)
    }
    assert pixels_of(after[1]) == pytest.approx([0.4, 0.6, 0.5])
    assert pixels_of(after[2]) == pytest.approx([0.35, 0.65, 0.5])
    assert pixels_of(after[9]) == pytest.approx([0.35, 0.65, 0.5])
    towards = pgd(network, given, label, epsilon=0.15, step_size=0.1, steps=1, targeted=True)
    assert pixels_of(towards) == pytest.approx([0.6, 0.4, 0.5])


def test_pgd_ends_where_pictures_end():
    network = linear([1.0, 0.0], [0.0, 1.0])
    moved = pgd(network, image(0.05, 0.95), torch.tensor([0]), epsilon=0.1, step_size=0.1, steps=1)
    assert pixels_of(moved) == [0.0, 1.0]


def test_the_published_steps_reach_epsilon_in_the_sixth():
    """α = 1.5/255 and ε = 8/255: 7.5 after five steps, 8 and no more after six."""
    network = linear([1.0, 0.0], [0.0, 1.0])
    for steps, reached in ((5, 7.5), (6, 8.0), (100, 8.0)):
        moved = pgd(network, image(0.5, 0.5), torch.tensor([0]), epsilon=8 / 255,
                    step_size=1.5 / 255, steps=steps)  # fmt: skip
        assert pixels_of((moved - 0.5) * 255) == pytest.approx([-reached, reached], abs=1e-3)


def test_deepfool_steps_to_the_border_and_two_percent_over():
    """Logits (x₁, x₂) at (3, 1), target 1: w = (−1, 1), |f| = 2, r = 2/2 · w = (−1, 1)."""
    perturbation, reached = deepfool(linear([1.0, 0.0], [0.0, 1.0]), image(3.0, 1.0), 1)
    assert pixels_of(perturbation) == pytest.approx([-1.02, 1.02])
    assert reached.tolist() == [True]
    without, arrived = deepfool(
        linear([1.0, 0.0], [0.0, 1.0]), image(3.0, 1.0), 1, overshoot=0.0, max_steps=3
    )
    assert pixels_of(without) == pytest.approx([-1.0, 1.0])
    assert arrived.tolist() == [False]  # a tie is the first class's


def test_deepfool_steps_from_the_class_the_image_is_in():
    """Logits (x, 1 − x, 0.8) at x = 4, target 1: first against class 0, then against class 2.

    f = −7, w = (−2, 0), r = 7/4 · w = −3.5, and 1.02 of it leads to x = 0.43, where class 2 says
    most. There f = 0.57 − 0.8 = −0.23, w = (−1, 0), Σr = −3.73, and 1.02 of it is over the border.
    """
    network = linear([1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], bias=[0.0, 1.0, 0.8])
    first, _ = deepfool(network, image(4.0, 0.0), 1, max_steps=1)
    assert pixels_of(first) == pytest.approx([-3.57, 0.0])
    both, reached = deepfool(network, image(4.0, 0.0), 1)
    assert pixels_of(both) == pytest.approx([-3.8046, 0.0], abs=1e-4)
    assert reached.tolist() == [True]
