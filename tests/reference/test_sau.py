"""SAU against hand-worked values and a slow plain restatement, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise import registry
from excise.defenses import SAU
from excise.defenses.sau import shared_risk
from excise.errors import SpecError
from excise.seeding import Rng
from excise.training.shared import jensen_shannon, shared_examples
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def linear(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network that is smooth enough to have shared examples: 1 × 4 × 4 pixels, 3 classes."""
    with Rng(seed).scope("net"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net.to(dtype).eval()


def pictures(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)


# --- hand-worked values -----------------------------------------------------------------------


def test_hand_worked_divergence() -> None:
    far = torch.tensor([[50.0, 0], [0, 0]]), torch.tensor([[0.0, 50], [0, 0]])
    assert jensen_shannon(*far).tolist() == pytest.approx([math.log(2), 0])


def test_hand_worked_risk() -> None:
    """p = (.7, .2, .1) and ỹ = 0: −ln .3 = 1.2040, halved by an image that is not fooled."""
    logits = torch.tensor([[0.7, 0.2, 0.1]] * 2).log()
    wrong, counted = torch.tensor([0, 0]), torch.tensor([True, False])
    assert float(shared_risk(logits, wrong, counted)) == pytest.approx(1.20397 / 2, abs=1e-5)
    assert float(shared_risk(logits, wrong, torch.tensor([False, False]))) == 0


def test_the_risk_has_gradients_where_the_network_is_sure() -> None:
    logits = torch.tensor([[300.0, 0, 0]], requires_grad=True)
    risk = shared_risk(logits, torch.tensor([0]), torch.tensor([True]))
    risk.backward()
    assert float(risk.detach()) == pytest.approx(300 - math.log(2))
    assert logits.grad is not None
    assert float(logits.grad[0, 0]) == pytest.approx(1)


def test_without_a_perturbation_nothing_is_shared() -> None:
    """Where h₀ is right and δ is next to nothing, the loss is the clean one."""
    net, images = linear(1), pictures(12).float()
    labels = net(images.double()).argmax(1)
    clean = float(F.cross_entropy(net(images.double()), labels).detach())
    data = DefenderData(LabelledImages(images, labels, ("a", "b", "c")), None, "made here")
    method = SAU(rounds=1, epsilon=1e-9, steps=0, clean_weight=2)
    (row,) = method.repair(net, data, Rng(0)).history
    assert row["loss"] == pytest.approx(2 * clean, rel=1e-5)


# --- a slow plain restatement -----------------------------------------------------------------


def plain_example(
    h: nn.Module, h0: nn.Module, x: Tensor, y: int, eps: float, step: float, steps: int
) -> Tensor:
    """The search of one image, as the paper words it, with β = (.01, 1)."""
    moved = (x + eps).clamp(0, 1)
    ours, theirs = int(h(x[None]).argmax()), int(h0(x[None]).argmax())
    for _ in range(steps):
        here = moved.clone().requires_grad_(True)
        p, q = (net(here[None]).softmax(1)[0] for net in (h, h0))
        a, b = int(p.argmax()), int(q.argmax())
        if a == b and a != ours and b != theirs:
            break
        gain = torch.zeros((), dtype=torch.float64)
        if a == ours:
            gain = gain - 0.01 / 2 * p[y].log()
        if b == theirs:
            gain = gain - 0.01 / 2 * q[y].log()
        m = (p + q) / 2
        js = sum(
            0.5 * p[k] * (p[k] / m[k]).log() + 0.5 * q[k] * (q[k] / m[k]).log() for k in (0, 1, 2)
        )
        (gradient,) = torch.autograd.grad(gain - js, here)
        delta = (here.detach() + step * gradient.sign() - x).clamp(-eps, eps)
        moved = (x + delta).clamp(0, 1)
    return moved


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_shared_examples_are_those_of_the_paper(steps: int) -> None:
    h, h0, x = linear(1), linear(2), pictures(24)
    y = torch.arange(24) % 3
    found = shared_examples(
        h, h0, x, y, epsilon=0.3, step_size=0.1, steps=steps, weights=(0.01, 1.0)
    )
    plain = [plain_example(h, h0, x[i], int(y[i]), 0.3, 0.1, steps) for i in range(24)]
    assert torch.allclose(found, torch.stack(plain), atol=1e-12)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - x).abs().max() <= 0.3 + 1e-12
    if steps == 5:  # the search found some, and left some for the rest of it to look for
        wrong = (h(found).argmax(1) == h0(found).argmax(1)) & (h(found).argmax(1) != h(x).argmax(1))
        assert 0 < int(wrong.sum()) < 24


def test_one_round_is_one_step_of_the_formula() -> None:
    """The same loss, and after it the weights that Adam's first step gives: w − rate · sign(g)."""
    net, x = linear(3), pictures(8, seed=4)
    y = torch.arange(8) % 3
    moved = torch.stack([plain_example(net, net, x[i], int(y[i]), 0.3, 0.1, 2) for i in range(8)])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(8):
        total = total - 1.5 * net(x[i : i + 1]).softmax(1)[0, y[i]].log() / 8
        p = net(moved[i : i + 1]).softmax(1)[0]
        wrong = int(p.argmax())
        if wrong not in (int(y[i]), int(net(x[i : i + 1]).argmax())):
            others = sum(p[k] for k in range(3) if k != wrong)
            total = total - 0.7 * 0.5 * (others.log() + (1 - p[wrong]).log()) / 8
    gradients = torch.autograd.grad(total, list(net.parameters()))
    data = DefenderData(LabelledImages(x, y, ("a", "b", "c")), None, "made here")
    fields = {"epsilon": 0.3, "step_size": 0.1, "steps": 2, "rounds": 1, "learning_rate": 1e-3}
    repaired = SAU(**fields, clean_weight=1.5, shared_weight=0.7).repair(net, data, Rng(0))
    assert repaired.history[0]["loss"] == pytest.approx(float(total.detach()), rel=1e-6)
    for old, new, g in zip(net.parameters(), repaired.model.parameters(), gradients, strict=True):
        assert torch.allclose(new, old - 1e-3 * g / (g.abs() + 1e-8), atol=1e-9)


def test_batch_norm_stands_still_unless_asked() -> None:
    with Rng(5).scope("net"):
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(4),
            nn.Flatten(), nn.Linear(3, 3),
        ).eval()  # fmt: skip
    labelled = LabelledImages(pictures(9).float(), torch.arange(9) % 3, ("a", "b", "c"))
    data = DefenderData(labelled, None, "made here")
    still, moves = (
        SAU(rounds=1, steps=1, train_mode=train).repair(net, data, Rng(0)).model
        for train in (False, True)
    )
    assert torch.equal(still[1].running_mean, net[1].running_mean)
    assert not torch.equal(moves[1].running_mean, net[1].running_mean)
    assert not torch.equal(still[1].weight, net[1].weight)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("epsilon", 0), ("epsilon", 2), ("steps", -1), ("batch_size", 1)]
)
def test_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(SpecError, match=field):
        registry.build("defense", "sau", {field: value})


def test_a_loss_that_is_not_finite_keeps_the_last_good_state() -> None:
    data = DefenderData(
        LabelledImages(pictures(9), torch.arange(9) % 3, ("a", "b", "c")), None, "made here"
    )
    net = linear(1)
    result = SAU(rounds=3, learning_rate=1e300).repair(net, data, Rng(0))
    assert any("diverged" in note for note in result.notes)
    assert all(p.isfinite().all() for p in result.model.parameters())
