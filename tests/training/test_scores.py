"""Scores of filters, against a plain loop over every number."""

import pytest
import torch

from excise.scores import mean_absolute_gradient

pytestmark = pytest.mark.fast


def slowly(gradients):
    scores = []
    for gradient in gradients:
        for one in gradient.tolist():
            numbers = [abs(v) for plane in one for line in plane for v in line]
            scores.append(sum(numbers) / len(numbers))
    return scores


def test_mean_absolute_gradient_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (2, 4, 1, 1), (6, 1, 5, 2), (1, 1, 1, 1)]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    scores = mean_absolute_gradient(gradients)
    assert scores.shape == (13,)
    torch.testing.assert_close(scores, torch.tensor(slowly(gradients)))


def test_the_sign_does_not_matter_and_the_size_of_a_filter_does_not_either():
    small, large = torch.full((1, 1, 1, 1), -2.0), torch.full((1, 8, 3, 3), 2.0)
    large[:, ::2] *= -1
    assert mean_absolute_gradient([small, large]).tolist() == [2.0, 2.0]


def test_by_hand():
    gradient = torch.tensor([[[[1.0]], [[-3.0]]], [[[0.5]], [[0.25]]]])
    assert mean_absolute_gradient([gradient]).tolist() == [2.0, 0.375]
    assert mean_absolute_gradient([torch.zeros(2, 1, 1, 1)]).tolist() == [0.0, 0.0]
