"""AWM against hand-worked values and a plain restatement, step by step and weight by weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import AWM
from excise.defenses.awm import within
from excise.errors import ModelError
from excise.seeding import Rng
from excise.training import Masked
from excise.training.universal import universal_perturbation
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


class Small(nn.Module):
    """Two convolutions, one batch norm; the second convolution has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@pytest.fixture
def network() -> nn.Module:
    with Rng(2).scope("small"):
        model = Small().double()
        model.bn1.running_mean.uniform_(-0.2, 0.2)
        model.bn1.running_var.uniform_(0.5, 1.5)
        for p in model.parameters():
            p.data.mul_(3)
    return model.eval()


@pytest.fixture
def data() -> DefenderData:
    pictures = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    labelled = LabelledImages(pictures, torch.arange(6) % 3, ("a", "b", "c"))
    return DefenderData(labelled, None, "made here")


def test_a_mask_of_ones_is_the_identity(network: nn.Module, data: DefenderData) -> None:
    masks = {f"{n}.weight": torch.ones_like(network.get_parameter(f"{n}.weight"))
             for n in ("conv1", "conv2")}  # fmt: skip
    x = data.train.images
    assert torch.equal(Masked(network, masks)(x), network(x))
    result = AWM(outer=0).repair(network, data, Rng(0))
    for name, before in network.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], before)


def test_masks_stay_in_0_1_and_touch_convolutions_alone(
    network: nn.Module, data: DefenderData
) -> None:
    result = AWM(outer=3, inner=2, learning_rate=0.6).repair(network, data, Rng(0))
    after, changed = result.model.state_dict(), 0
    for name, before in network.state_dict().items():
        if name in ("conv1.weight", "conv2.weight"):
            ratio = after[name] / before
            assert bool(((ratio >= 0) & (ratio <= 1 + 1e-12)).all())
            changed += int((ratio < 1).sum())
            # Weight by weight: within one filter some shrink and others do not.
            assert bool((ratio < 0.99).any())
            assert bool((ratio > 0.99).any())
        else:
            assert torch.equal(after[name], before), name
    assert changed
    assert result.edits == ()


@pytest.mark.parametrize(
    ("delta", "norm", "expected"),
    [([3.0, -1], 2.0, [1.5, -0.5]), ([3.0, -1], 4.0, [3.0, -1]), ([0.0, 0], 1.0, [0.0, 0])],
)
def test_hand_worked_norms(delta: list[float], norm: float, expected: list[float]) -> None:
    assert within(torch.tensor(delta), norm).tolist() == pytest.approx(expected)


def test_hand_worked_perturbation() -> None:
    """f(x) = (x, −x): logits (½, −½) are class 0; −CE falls where x falls.

    CE = ln(1 + e^{−2(x+δ)}), its slope at ½ is −2/(1 + e) = −.5379: δ ← −rate · .5379.
    """

    def f(x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), -x.flatten(1)], 1)

    x = torch.full((2, 1, 1, 1), 0.5)
    delta = universal_perturbation(f, x, Rng(0), rate=1.0, passes=1, batch_size=2)
    assert delta.flatten().tolist() == pytest.approx([-0.5379], abs=5e-5)
    # A second step starts there; the penalty's slope is 2 c δ.
    second = universal_perturbation(f, x, Rng(0), rate=1.0, passes=2, batch_size=2, penalty=0.5)
    slope = -2 / (1 + torch.tensor(2 * (0.5 - 0.5379)).exp())
    assert float(second) == pytest.approx(float(-0.5379 + slope + 0.5379), abs=1e-3)


def test_equals_the_plain_restatement(network: nn.Module, data: DefenderData) -> None:
    """Two rounds of one batch, by hand: δ by SGD, then Adam on every mask, written out."""
    method = AWM(outer=2, inner=2, perturbation_norm=1.5, perturbation_rate=3.0, sparsity=1e-2)
    result = method.repair(network, data, Rng(0))
    x, y = data.train.images, data.train.labels
    names = ("conv1.weight", "conv2.weight")
    m = {n: torch.ones_like(network.get_parameter(n)) for n in names}
    first = {n: torch.zeros_like(v) for n, v in m.items()}
    second = {n: torch.zeros_like(v) for n, v in m.items()}

    def f(x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        w = {n: network.get_parameter(n).detach() * masks[n] for n in names}
        logits: Tensor = torch.func.functional_call(network, w, (x,))
        return logits

    t = 0
    for _ in range(2):
        with torch.no_grad():
            own = f(x, m).argmax(1)
        delta = torch.zeros(1, 1, 4, 4, dtype=torch.double)
        for _ in range(2):
            delta.requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(f(x + delta, m), own), delta)
            delta = (delta + 3.0 * g).detach()
        delta = delta * min(1.0, 1.5 / float(delta.abs().sum()))
        for _ in range(2):
            t += 1
            masks = {n: v.clone().requires_grad_(True) for n, v in m.items()}
            moved = torch.minimum(torch.maximum(x + delta, torch.zeros(())), torch.ones(()))
            loss = 0.9 * F.cross_entropy(f(x, masks), y)
            loss = loss + 0.1 * F.cross_entropy(f(moved, masks), y)
            loss = loss + 1e-2 * torch.stack([v.abs().sum() for v in masks.values()]).sum()
            for n, g in zip(names, torch.autograd.grad(loss, list(masks.values())), strict=True):
                first[n] = 0.9 * first[n] + 0.1 * g
                second[n] = 0.999 * second[n] + 0.001 * g * g
                mean, square = first[n] / (1 - 0.9**t), second[n] / (1 - 0.999**t)
                m[n] = (m[n] - 0.01 * mean / (square.sqrt() + 1e-8)).clamp(0, 1)
    for n in names:
        expected = network.get_parameter(n) * m[n]
        assert torch.allclose(result.model.get_parameter(n), expected, atol=1e-7), n
    assert len(result.history) == 4


def test_a_diverging_search_keeps_the_last_good_masks(
    network: nn.Module, data: DefenderData
) -> None:
    with torch.no_grad():
        network.get_parameter("linear.weight")[0] = torch.finfo(torch.double).max
    result = AWM(outer=2, inner=1).repair(network, data, Rng(0))
    assert result.notes == ("Stage mask diverged in epoch 1; the last good state was kept.",)
    assert torch.equal(
        result.model.get_parameter("conv1.weight"), network.get_parameter("conv1.weight")
    )


def test_bad_input(data: DefenderData) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ModelError, match="a network with convolutions, on which AWM works"):
        AWM().repair(flat, data, Rng(0))
    weighty = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(ModelError, match="a weight of its own in 0"):
        AWM().repair(weighty, data, Rng(0))
