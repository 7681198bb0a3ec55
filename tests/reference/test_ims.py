"""IMS against hand-worked values and plain restatements of its losses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import IMS
from excise.errors import ModelError
from excise.models import trace
from excise.seeding import Rng
from excise.training.epochs import out_of_patience
from excise.training.invertible import InvertibleMasks, agree, disagree, gate, perturbed
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


class Small(nn.Module):
    """The first convolution feeds a batch norm, the second has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 5, 3, padding=1)
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor, gates: tuple[Tensor, ...] | None = None) -> Tensor:
        one = self.conv1(x)
        one = one if gates is None else one * gates[0][:, None, None]
        two = self.conv2(F.relu(self.bn1(one)))
        two = two if gates is None else two * gates[1][:, None, None]
        logits: Tensor = self.linear(F.relu(two).mean((2, 3)))
        return logits


@pytest.fixture
def network() -> nn.Module:
    with Rng(2).scope("small"):
        model = Small().double().eval()
        for p in model.parameters():
            p.data.mul_(3)
    return model.requires_grad_(False)


@pytest.fixture
def data() -> DefenderData:
    pictures = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    return DefenderData(
        LabelledImages(pictures, torch.arange(6) % 3, ("a", "b", "c")), None, "made here"
    )


@pytest.fixture
def masks(network: nn.Module, data: DefenderData) -> InvertibleMasks:
    made = InvertibleMasks(network, trace(network, data.train.images), 20.0)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        made.mask.copy_(torch.rand(9, generator=g) * 0.4 + 0.3)
        made.selection.copy_(torch.rand(9, generator=g))
    return made


def v(m: float, s: float) -> float:
    """The gate as the specification words it."""
    g = 1 / (1 + math.exp(-20 * (m - 0.5)))
    return g + s * (1 - g)


def test_hand_worked_gates() -> None:
    """σ(10) = .99995, σ(−10) = 4.54e-5; s = 1 keeps a channel in both networks."""
    ones = torch.ones(1).double()
    assert float(gate(ones, 0 * ones, 20)) == pytest.approx(0.99995, abs=5e-6)
    assert float(gate(0 * ones, 0 * ones, 20)) == pytest.approx(4.54e-5, abs=5e-8)
    for m in (0.0, 0.3, 1.0):
        assert float(gate(m * ones, ones, 20)) == 1.0
    assert float(gate(0.5 * ones, 0.5 * ones, 20)) == 0.75


def test_hand_worked_agreement() -> None:
    """p = (½, ½), q = (¾, ¼): Σ p q = ½; A = D = ln 2."""
    p, q = torch.zeros(1, 2).double(), torch.tensor([[3.0, 1.0]]).log().double()
    assert float(agree(p, q)) == pytest.approx(math.log(2), abs=1e-7)
    assert float(disagree(p, q)) == pytest.approx(math.log(2), abs=1e-7)
    sure = torch.tensor([[100.0, 0.0]])
    # To the last bit alike, or not at all: large, and finite.
    assert float(disagree(sure, sure)) == pytest.approx(-math.log(1e-8), rel=1e-3)
    assert float(agree(sure, sure.flip(1))) == pytest.approx(-math.log(1e-8), rel=1e-3)


@pytest.mark.parametrize("inverse", [False, True])
def test_masks_multiply_what_convolutions_give(
    network: nn.Module, masks: InvertibleMasks, data: DefenderData, inverse: bool
) -> None:
    """Before batch norm, bias and all; channel by channel."""
    values = torch.tensor([
        v(1 - m if inverse else m, s)
        for m, s in zip(masks.mask.tolist(), masks.selection.tolist(), strict=True)
    ]).double()  # fmt: skip
    expected = network(data.train.images, (values[:4], values[4:]))
    assert torch.allclose(masks(data.train.images, inverse=inverse), expected)


def test_masks_of_one_change_nothing(network: nn.Module, data: DefenderData) -> None:
    fresh = InvertibleMasks(network, trace(network, data.train.images), 20.0)
    clean = network(data.train.images)
    assert torch.equal(fresh(data.train.images), clean)
    assert torch.equal(fresh(data.train.images, inverse=True), clean)
    result = IMS(initial_rounds=0, rounds=0).repair(network, data, Rng(0))
    for name, before in network.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], before)


def plain_agree(a: Tensor, b: Tensor, *, inverse: bool = False) -> Tensor:
    total = []
    for one, other in zip(a.softmax(1), b.softmax(1), strict=True):
        overlap = torch.stack([p * q for p, q in zip(one, other, strict=True)]).sum()
        total.append(-torch.log((1 - overlap if inverse else overlap) + 1e-8))
    return torch.stack(total).sum() / len(total)


def test_perturbations_equal_the_plain_restatement(
    network: nn.Module, masks: InvertibleMasks, data: DefenderData
) -> None:
    """AdamW written out, a δ for each image, kept where x + δ is in [0, 1]."""
    x = data.train.images
    clean = network(x)
    delta = torch.zeros_like(x)
    first = second = torch.zeros_like(x)
    for t in range(1, 4):
        at = delta.clone().requires_grad_(True)
        shifted = network(x + at)
        loss = plain_agree(masks(x + at, inverse=True), shifted)
        loss = loss + plain_agree(shifted, clean, inverse=True)
        (g,) = torch.autograd.grad(loss, at)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        mean, root = first / (1 - 0.9**t), (second / (1 - 0.999**t)).sqrt()
        delta = delta * (1 - 0.1 * 0.01) - 0.1 * mean / (root + 1e-8)
        delta = (x + delta).clamp(0, 1) - x
    moved = perturbed(network, masks, x, steps=3, rate=0.1)
    assert torch.allclose(moved, x + delta, atol=1e-9)
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert masks.mask.grad is None
    assert torch.equal(perturbed(network, masks, x, steps=0, rate=0.1), x)


@pytest.mark.parametrize("stage", ["initial", "minimize", "sparsify"])
def test_losses_equal_the_plain_restatement(
    network: nn.Module, masks: InvertibleMasks, data: DefenderData, stage: str
) -> None:
    method, x = IMS(steps=2, perturbation_rate=0.1), data.train.images
    weight = 0.0 if stage == "minimize" else 10.0
    twin = copy.deepcopy(masks.state_dict())
    moved = perturbed(network, masks, x, steps=2, rate=0.1)
    clean, shifted = network(x), network(moved)
    loss = plain_agree(masks(x), clean)
    loss = loss + plain_agree(masks(x, inverse=True), clean, inverse=True)
    if stage != "initial":
        loss = loss + plain_agree(masks(moved), clean)
        loss = loss + plain_agree(masks(moved, inverse=True), shifted)
        loss = loss + plain_agree(masks(moved, inverse=True), clean, inverse=True)
    for i in range(9):
        loss = loss + weight / 9 * (1 - masks.selection[i])
    gradients = torch.autograd.grad(loss, [masks.mask, masks.selection])
    measured = method._step(network, masks, stage, weight)(x, data.train.labels, 0.0)
    assert float(measured.detach()) == pytest.approx(float(loss.detach()))
    # AdamW's first step: decay, then the sign; then back into [0, 1].
    for name, g in zip(("mask", "selection"), gradients, strict=True):
        step = twin[name] * (1 - 0.02 * 0.01) - 0.02 * g / (g.abs() + 1e-8)
        assert torch.allclose(masks.state_dict()[name], step.clamp(0, 1), atol=1e-6), name


def test_the_result_is_an_ordinary_network(network: nn.Module, data: DefenderData) -> None:
    """The final gates stand in weight and bias of the filters, and nowhere else."""
    result = IMS(
        initial_rounds=8, rounds=2, steps=2, mask_rate=0.2, sparsity=0.0
    ).repair(network, data, Rng(0))  # fmt: skip
    after = result.model.state_dict()
    assert after.keys() == network.state_dict().keys()
    for name, before in network.state_dict().items():
        if name.startswith("conv"):
            ratio = (after[name] / before).flatten(1) if before.ndim > 1 else after[name] / before
            if before.ndim > 1:
                assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
            assert bool(((ratio > -1e-9) & (ratio <= 1 + 1e-9)).all())
        else:
            assert torch.equal(after[name], before), name
    weight, bias = (
        after[f"conv2.{n}"] / network.state_dict()[f"conv2.{n}"] for n in ("weight", "bias")
    )
    assert torch.allclose(weight[:, 0, 0, 0], bias)
    assert bool((bias < 0.999).any())
    assert {row["stage"] for row in result.history} == {"initial", "minimize", "sparsify"}
    assert result.edits == ()


def test_patience() -> None:
    """Below .98 of the lowest is progress; two rounds without it are allowed, a third is not."""
    enough = out_of_patience(2, 0.98)
    assert [enough(x) for x in (10.0, 9.9, 9.7, 9.6, 9.55, 9.51)] == [False] * 5 + [True]
    assert out_of_patience(0)(1.0) is False


def test_a_batch_is_random_images_without_repetition(
    network: nn.Module, data: DefenderData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def keep(self: IMS, f: nn.Module, masks: InvertibleMasks, stage: str, weight: float) -> object:
        def step(images: Tensor, labels: Tensor, progress: float) -> Tensor:
            seen.append(images)
            return torch.ones(())

        return step

    monkeypatch.setattr(IMS, "_step", keep)
    IMS(initial_rounds=2, rounds=0).repair(network, data, Rng(0))
    assert [len(batch) for batch in seen] == [6, 6]
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0].flatten().sort().values, seen[1].flatten().sort().values)


def test_a_diverging_stage_keeps_the_last_good_masks_and_ends_it(
    network: nn.Module, data: DefenderData
) -> None:
    with torch.no_grad():
        network.get_parameter("linear.weight")[0] = math.inf
    result = IMS(steps=1).repair(network, data, Rng(0))
    assert result.notes == ("Stage initial diverged in epoch 1; the last good state was kept.",)
    assert {row["stage"] for row in result.history} == {"initial"}
    assert torch.equal(
        result.model.get_parameter("conv1.weight"), network.get_parameter("conv1.weight")
    )


def test_bad_input(data: DefenderData) -> None:
    with pytest.raises(ModelError, match="a network with convolutions, on which IMS works"):
        IMS().repair(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data, Rng(0))
    weighty = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(ModelError, match="a weight of its own in 0"):
        IMS().repair(weighty, data, Rng(0))
