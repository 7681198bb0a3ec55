"""TSBD against values worked by hand and slow plain restatements of its specification."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import one_convolution
from torch import nn

from excise.defenses import TSBD
from excise.errors import ModelError
from excise.scores.weight_change import most_changed
from excise.seeding import Rng
from excise.training.gradient_norm import activeness_aware
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def changes(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(5, 2, 3, 3, generator=generator),
        torch.rand(7, 4, 1, 1, generator=generator),
    ]


def test_worked_reinitialization() -> None:
    """NWC (1, 6, 5, 1): half of the filters are b and c; their weights moved 4, 3, 3 and 1.

    Half of these four are two, 4 and one 3; the other 3 ties and goes with it.
    """
    first = torch.tensor([[0.5, 0.5], [3.0, 3.0]])
    second = torch.tensor([[4.0, 1.0], [0.2, 0.8]])
    one, two = most_changed([first, second], 0.5, 0.5)
    assert one.tolist() == [[False, False], [True, True]]  # the second of the pool is 3: a tie
    assert two.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(("n", "m"), [(0.25, 0.7), (0.5, 0.1), (1.0, 1.0), (0.0, 0.7), (0.5, 0.0)])
def test_reinitialization_slowly(n, m) -> None:
    layers = changes(3)
    found = most_changed(layers, n, m)
    ranked = sorted(
        ((float(layer[i].sum()), number, i)
         for number, layer in enumerate(layers) for i in range(len(layer))),
        reverse=True,
    )[: int(n * 12)]  # fmt: skip
    pool = sorted(
        (float(w) for _, number, i in ranked for w in layers[number][i].flatten()), reverse=True
    )
    taken = pool[: int(m * len(pool))]
    for number, layer in enumerate(layers):
        for i in range(len(layer)):
            suspect = any((number, i) == (k, j) for _, k, j in ranked)
            wanted = (
                layer[i] >= min(taken) if suspect and taken else torch.zeros_like(layer[i]).bool()
            )
            assert torch.equal(found[number][i], wanted)


def test_one_ranking_over_all_layers() -> None:
    """A filter with more weights ranks higher at the same change per weight: NWC is a sum."""
    wide, narrow = torch.full((2, 9), 0.5), torch.full((2, 1), 1.0)
    one, two = most_changed([wide, narrow], 0.5, 1.0)
    assert bool(one.all())
    assert not two.any()


class Quadratic(nn.Module):
    """Two classes, logits (w · x, 0): a loss of one weight, worked by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.0]))
        self.unused = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1).sum(1) * self.w
        return torch.stack([z, torch.zeros_like(z)], 1)


def test_worked_step() -> None:
    """x = 1, y = 1, w = 0: g₁ = σ(0) = .5; r = 1 moves w to 1: g₂ = σ(1) = .73106.

    α = .7: .3 · .5 + .7 · .73106 = .66174.
    """
    model = Quadratic()
    loss = activeness_aware(model, torch.ones(1, 1, 1, 1), torch.tensor([1]), radius=1.0, alpha=0.7)
    assert float(loss) == pytest.approx(0.6931472)
    assert float(model.w.grad) == pytest.approx(0.6617410, abs=1e-6)
    assert model.w.tolist() == [0.0]
    assert model.unused.grad is None


@pytest.fixture
def network() -> nn.Module:
    return one_convolution()


@pytest.fixture(scope="module")
def data() -> DefenderData:
    labels = torch.arange(24) % 3
    images = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    images[torch.arange(24), 0, 0, labels] = 1
    return DefenderData(LabelledImages(images, labels, ("a", "b", "c")), None, "made here")


def test_the_step_is_what_the_formula_says(network, data) -> None:
    """Each tensor moves by r along its own gradient; batch norm counts the batch once."""
    images, labels = data.train.images, data.train.labels
    model = copy.deepcopy(network).train()
    activeness_aware(model, images, labels, radius=0.05, alpha=0.7)

    def gradients(net: nn.Module) -> list[torch.Tensor]:
        loss = F.cross_entropy(net(images), labels)
        return list(torch.autograd.grad(loss, list(net.parameters())))

    here = copy.deepcopy(network).train()
    first = gradients(here)
    there = copy.deepcopy(network).train()
    with torch.no_grad():
        for p, g in zip(there.parameters(), first, strict=True):
            p += 0.05 * g / g.pow(2).sum().sqrt()
    for p, g1, g2 in zip(model.parameters(), first, gradients(there), strict=True):
        torch.testing.assert_close(p.grad, 0.3 * g1 + 0.7 * g2)
    for (name, value), was in zip(model.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(value, was), name
    assert torch.equal(model.bn.running_mean, here.bn.running_mean)
    assert int(model.bn.num_batches_tracked) == 1


def test_alpha_0_is_plain_fine_tuning(network, data) -> None:
    model = copy.deepcopy(network).train()
    activeness_aware(model, data.train.images, data.train.labels, radius=0.05, alpha=0)
    plain = copy.deepcopy(network).train()
    F.cross_entropy(plain(data.train.images), data.train.labels).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_only_what_moved_most_is_zeroed(network, data) -> None:
    """Without fine-tuning, half of the filters lose all weights and nothing else changes."""
    fields = {
        "unlearning_rate": 0.01,
        "unlearning_epochs": 3,
        "unlearning_accuracy": 0,
        "epochs": 0,
    }
    result = TSBD(neuron_ratio=0.5, weight_ratio=1.0, **fields).repair(network, data, Rng(0))
    weight = result.model.conv.weight.detach()
    silent = (weight == 0).flatten(1).all(1)
    assert int(silent.sum()) == 2
    assert torch.equal(weight[~silent], network.conv.weight[~silent])
    for name, value in result.model.state_dict().items():
        if name != "conv.weight":
            assert torch.equal(value, network.state_dict()[name]), name


def test_unlearning_stops_at_its_accuracy(network, data) -> None:
    history = TSBD(unlearning_accuracy=1.0, epochs=0).repair(network, data, Rng(0)).history
    assert [row["stage"] for row in history] == ["unlearn"]


def test_a_network_without_convolutions_is_refused(data) -> None:
    with pytest.raises(ModelError, match="a network with convolutions, on which TSBD works"):
        TSBD().repair(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data, Rng(0))
