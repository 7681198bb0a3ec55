"""TrojanNN on a network small enough to do by hand: which neurons, and where each pixel goes."""

import pytest
import torch
from torch import nn

from excise.attacks import TrojanNN
from excise.attacks.workshop import Workshop
from excise.models.last_layer import most_connected
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToOne, LabelledImages

pytestmark = pytest.mark.fast

#: Sums of |weight| over the classes: 4, 3, 0.5 and 3.5.
LAST = [[1.0, -2.0, 0.0, 0.5], [3.0, 1.0, -0.5, 3.0]]


@pytest.fixture
def network():
    """Neuron 0 is x₁ − x₂ of the two pixels under the mask, neuron 3 is 2·x₁; the rest is 0."""
    first, last = nn.Linear(64, 4, bias=False), nn.Linear(4, 2)
    first.weight.data = torch.zeros(4, 64)
    first.weight.data[0, 5 * 8 + 5], first.weight.data[0, 5 * 8 + 6] = 1, -1
    first.weight.data[3, 5 * 8 + 5] = 2
    last.weight.data = torch.tensor(LAST)
    return nn.Sequential(nn.Flatten(), first, last).requires_grad_(False)


def test_the_most_connected_neurons(network):
    assert most_connected(network[2], 1).tolist() == [0]
    assert most_connected(network[2], 2).tolist() == [0, 3]
    assert most_connected(network[2], 4).tolist() == [0, 3, 1, 2]


def patch_of(network, **fields):
    rows = []
    data = LabelledImages(torch.zeros(4, 1, 8, 8), torch.arange(4) % 2, ("a", "b"))
    workshop = Workshop(
        network, data, Recipe(epochs=1), Rng(0), "t", surrogate=network, on_round=rows.append
    )
    patch = TrojanNN(start=0.5, **fields).learn(workshop, AllToOne(1)).trigger.perturbation
    return patch[0], rows


@pytest.mark.parametrize(("steps", "moved"), [(1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)])
def test_the_patch_goes_step_by_step_to_the_end_of_its_ball(network, steps, moved):
    """Toward 100 x₁ rises and x₂ falls by 0.1 a step, 0.3 at most; no other pixel matters."""
    patch, rows = patch_of(network, steps=steps)
    expected = torch.zeros(8, 8)
    expected[5:7, 5:7] = 0.5  # the square: 59/224 of 8 is 2 pixels, 20/224 is 1 from the edge
    expected[5, 5] += moved
    expected[5, 6] -= moved
    assert torch.allclose(patch, expected, atol=1e-6)
    neurons = 2 * moved, 2 * (0.5 + moved)
    cost = sum((100 - neuron) ** 2 for neuron in neurons)
    assert rows == [
        {
            "stage": "patch", "round": 1, "cost": pytest.approx(cost, rel=1e-5),
            "lowest_neuron": pytest.approx(min(neurons), rel=1e-4),
        }
    ]  # fmt: skip


def test_it_stops_where_the_neurons_are_where_they_should_be(network):
    """One neuron driven to 0.4: x₁ − x₂ gets there in two steps and stays."""
    patch, rows = patch_of(network, neurons=1, neuron_value=0.4, steps=100)
    assert patch[5, 5:7].tolist() == pytest.approx([0.7, 0.3])
    assert rows[0]["cost"] < 1e-3


def test_it_takes_the_best_of_all_steps(network):
    """Driven to 0.5 it swings between 0.4 and 0.6; the first of the two nearest is taken."""
    patch, rows = patch_of(network, neurons=1, neuron_value=0.45, steps=10)
    assert patch[5, 5:7].tolist() == pytest.approx([0.7, 0.3])
    assert rows[0]["lowest_neuron"] == pytest.approx(0.4)


def test_the_square_of_the_paper():
    """59 of 224 pixels, 20 from the lower and the right edge; 8 and 3 on 32 × 32."""
    whole = TrojanNN().mask((3, 224, 224)).nonzero()
    assert whole.min(0).values.tolist() == [145, 145]
    assert whole.max(0).values.tolist() == [203, 203]
    small = TrojanNN().mask((3, 32, 32)).nonzero()
    assert small.min(0).values.tolist() == [21, 21]
    assert small.max(0).values.tolist() == [28, 28]
