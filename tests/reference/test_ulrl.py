"""ULRL against values worked by hand and plain restatements of docs/methods/newer-defenses.md."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.defenses import ULRL
from excise.defenses.ulrl import suspicious
from excise.errors import ModelError
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def rows_of(*change: float, most: int = 2, deviation: float = 3.5) -> list[int]:
    return suspicious(torch.tensor(change), deviation=deviation, most=most).tolist()


def test_worked_outliers() -> None:
    # Median 2.5, deviations 1.5, .5, .5, 7.5: MAD 1; only 10 is (7.5 / 1.4826 = 5.06) beyond 3.5.
    assert rows_of(1.0, 2.0, 3.0, 10.0) == [3]
    # Far below the median is no suspect.
    assert rows_of(10.0, 11.0, 12.0, 0.0, 11.5) == []
    # Median 3, MAD 1: (9 − 3) / 1.4826 = 4.05; (8 − 3) / 1.4826 = 3.37.
    assert rows_of(1.0, 2.0, 3.0, 4.0, 9.0) == [4]
    assert rows_of(1.0, 2.0, 3.0, 4.0, 8.0) == []


def test_of_three_outliers_the_two_that_moved_most() -> None:
    change = (9.0, 1.0, 1.1, 0.9, 1.2, 8.0, 1.05, 0.95, 10.0, 1.0)
    assert rows_of(*change) == [8, 0]
    assert rows_of(*change, most=3) == [8, 0, 5]


def test_equal_changes_are_no_suspects_and_no_division_by_zero() -> None:
    assert rows_of(1.0, 1.0, 1.0, 1.0) == []
    assert rows_of(1.0, 1.0, 1.0, 4.0) == [3]


@pytest.mark.parametrize("count", [9, 10])
def test_outliers_slowly(count) -> None:
    change = torch.rand(count, generator=torch.Generator().manual_seed(count)).pow(6)
    ordered = sorted(change.tolist())

    def median(values: list[float]) -> float:
        values, half = sorted(values), len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    middle = median(ordered)
    spread = 1.4826 * median([abs(value - middle) for value in ordered])
    wanted = [k for k in range(count) if (float(change[k]) - middle) / spread > 2]
    assert sorted(suspicious(change, deviation=2, most=count).tolist()) == wanted
    assert wanted, "no outlier drawn: the test would show nothing"


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 6)
        self.last = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(F.relu(self.first(x.flatten(1))))
        return logits


@pytest.fixture
def network() -> nn.Module:
    with Rng(4).scope("network"):
        return Tiny().eval()


@pytest.fixture(scope="module")
def data() -> DefenderData:
    labels = torch.arange(25) % 5
    images = torch.rand(25, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DefenderData(LabelledImages(images, labels, tuple("abcde")), None, "made here")


def unlearned(network: nn.Module, data: DefenderData, epochs: int) -> torch.Tensor:
    """Return how far each output's weights move: plain ascent, all images at once."""
    model = copy.deepcopy(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        optimizer.zero_grad()
        (-F.cross_entropy(model(data.train.images), data.train.labels)).backward()
        length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 20 / float(length))
        optimizer.step()
    return (model.last.weight - network.last.weight).detach().abs().sum(1)


def test_relearning_is_what_the_formula_says(network, data) -> None:
    fields = {"unlearning_epochs": 4, "unlearning_accuracy": 0.0, "deviation": 0.5, "most": 1}
    result = ULRL(**fields, epochs=2, learning_rate=0.1).repair(network, data, Rng(5))
    change = unlearned(network, data, 4)
    row = int(change.argmax())
    assert suspicious(change, deviation=0.5, most=1).tolist() == [row]

    model = copy.deepcopy(network)
    was = model.last.weight[row].detach().clone()
    with torch.no_grad():
        bound = math.sqrt(2 / 6)
        drawn = torch.empty(1, 6).uniform_(-bound, bound, generator=Rng(5).torch("reset"))
        model.last.weight[row] = drawn[0]
        model.last.bias[row] = 0
    speed = [torch.zeros_like(p) for p in model.parameters()]
    for rate in (0.1, 0.05):
        reset = model.last.weight[row]
        cosine = (reset * was).sum() / (reset.norm() * was.norm())
        loss = F.cross_entropy(model(data.train.images), data.train.labels) + 0.7 * cosine
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), speed, gradients, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(rate * v)
    for found, expected in zip(result.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_where_nothing_stands_out_it_only_fine_tunes(network, data) -> None:
    result = ULRL(deviation=1e9, unlearning_epochs=1, epochs=1).repair(network, data, Rng(0))
    assert result.notes == (
        "No output stood out while unlearning; the rest was plain fine-tuning.",
    )
    assert [row["stage"] for row in result.history] == ["unlearn", "relearn"]


def test_unlearning_stops_at_its_accuracy(network, data) -> None:
    history = ULRL(unlearning_accuracy=1.0, epochs=0).repair(network, data, Rng(0)).history
    assert [row["stage"] for row in history] == ["unlearn"]


def test_a_network_without_a_last_linear_layer_is_refused(data) -> None:
    headless = nn.Sequential(nn.Conv2d(1, 5, 4), nn.Flatten())
    with pytest.raises(ModelError, match="whose last step is a linear layer"):
        ULRL().repair(headless, data, Rng(0))
