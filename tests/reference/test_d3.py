"""D3 against values worked by hand and slow plain restatements of its specification."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.defenses import D3
from excise.defenses.d3 import penalty, projected, warmed_up
from excise.errors import ModelError
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def data() -> DefenderData:
    labels = torch.arange(24) % 3
    images = torch.rand(24, 1, 4, 4, generator=generator())
    images[torch.arange(24), 0, 0, labels] = 1
    return DefenderData(LabelledImages(images, labels, ("a", "b", "c")), None, "made here")


@pytest.fixture
def network() -> nn.Module:
    with Rng(0).scope("network"):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def test_worked_projection_and_distance() -> None:
    initial, moved = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    assert torch.equal(projected(moved, initial), torch.tensor([0.0, 5.0]))
    assert float((projected(moved, initial) - initial).norm()) == pytest.approx(math.sqrt(10))
    # The farthest there is on the sphere is the antipode, at twice the norm.
    assert float((warmed_up(initial, "far", generator()) - initial).norm()) == 10


def test_worked_penalty() -> None:
    losses, distance = torch.tensor([0.05, 0.3]), torch.tensor(10.0).sqrt()
    assert float(penalty(losses, distance, weight=0.5, threshold=0.1)) == pytest.approx(
        -3.1122777, abs=1e-6
    )
    assert float(penalty(losses, distance, weight=3, threshold=0.1)) == pytest.approx(
        -0.7155694, abs=1e-6
    )


def test_a_loss_below_the_threshold_asks_for_nothing() -> None:
    losses = torch.tensor([0.05, 0.3], requires_grad=True)
    penalty(losses, torch.tensor(0.0), weight=0.5, threshold=0.1).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.0, 0.25]


@pytest.mark.parametrize("start", ["random", "noise", "middle", "far"])
def test_where_the_classifier_starts(start) -> None:
    initial = torch.randn(5, 7, generator=generator())
    begun = warmed_up(initial, start, generator())
    if start == "random":
        drawn = torch.empty(5, 7).uniform_(-0.5, 0.5, generator=generator())
        torch.testing.assert_close(begun, drawn / drawn.norm() * initial.norm())
    elif start == "noise":
        assert float((begun - initial).std()) == pytest.approx(float(initial.std()), rel=0.4)
    else:
        assert torch.equal(begun, -initial if start == "far" else torch.zeros(5, 7))


def test_an_all_zero_classifier_stays_finite() -> None:
    assert torch.equal(projected(torch.zeros(3), torch.ones(3)), torch.zeros(3))


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_one_epoch_is_what_the_formula_says(network, data, weight) -> None:
    """Two passes over all images at once, restated with plain tensors."""
    fields = {"clean_weight": weight, "start": "far", "epochs": 2, "learning_rate": 0.1}
    result = D3(**fields).repair(network, data, Rng(1)).model

    flat = data.train.images.flatten(1)
    w1, b1, w2, b2 = (p.detach().clone() for p in network.parameters())
    given, w2 = w2.clone(), -w2
    speed = [torch.zeros_like(p) for p in (w1, b1, w2, b2)]
    # The restatement knows no augmentation: 4 × 4 pixels are too few to be cropped (an eighth).
    for rate in (0.1, 0.05):
        now = [p.clone().requires_grad_() for p in (w1, b1, w2, b2)]
        logits = F.relu(flat @ now[0].T + now[1]) @ now[2].T + now[3]
        total = sum(
            F.relu(F.cross_entropy(one[None], label[None]) - 0.1)
            for one, label in zip(logits, data.train.labels, strict=True)
        )
        loss = weight * total / 24 - (now[2] - given).pow(2).sum().sqrt()
        loss = loss / (weight + 1) if weight > 1 else loss
        gradients = torch.autograd.grad(loss, now)
        speed = [0.9 * v + g for v, g in zip(speed, gradients, strict=True)]
        w1, b1, w2, b2 = (p - rate * v for p, v in zip((w1, b1, w2, b2), speed, strict=True))
        w2 = w2 * given.norm() / w2.norm()
    for found, expected in zip(result.parameters(), (w1, b1, w2, b2), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_norm_is_kept_and_the_classifier_is_far(network, data) -> None:
    before = network[3].weight.detach()
    after = D3(epochs=5, batch_size=8).repair(network, data, Rng(2)).model[3].weight.detach()
    assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-5)
    assert float((after - before).norm()) > 0.5 * float(before.norm())


def test_divergence_is_said(network, data) -> None:
    result = D3(learning_rate=1e38, epochs=5).repair(network, data, Rng(0))
    assert "diverged" in result.notes[0]
    assert all(p.isfinite().all() for p in result.model.parameters())


def test_a_network_without_a_last_linear_layer_is_refused(data) -> None:
    headless = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    with pytest.raises(ModelError, match="whose last step is a linear layer"):
        D3().repair(headless, data, Rng(0))
