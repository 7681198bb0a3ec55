"""FMP against a plain restatement, one filter and one backward pass at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import FMP
from excise.errors import ModelError
from excise.models import build_model, trace
from excise.scores.feature_reverse import feature_reverse_accuracy, lowest, reversed_images
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


class Tiny(nn.Module):
    """The first convolution owns its batch norm, the second feeds a sum and has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.leaky_relu(self.conv2(x) + x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@pytest.fixture
def network() -> nn.Module:
    with Rng(3).scope("tiny"):
        return Tiny().double().eval()


def images(n: int) -> LabelledImages:
    pictures = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(5)).double()
    return LabelledImages(pictures, torch.arange(n) % 3, ("a", "b", "c"))


@pytest.fixture
def data() -> DefenderData:
    return DefenderData(images(12), None, "made here")


FILTERS = [(layer, index) for layer in ("conv1", "conv2") for index in range(6)]


def plain_reversed(
    model: nn.Module, x: Tensor, x0: Tensor, layer: str, index: int, eps: float
) -> Tensor:
    """One filter: map of the clean images, map of the moved ones, one sign step."""

    def feature_map(x: Tensor) -> Tensor:
        first = model.conv1(x)  # type: ignore[operator]
        if layer == "conv1":
            return first[:, index]  # type: ignore[no-any-return]
        second: Tensor = model.conv2(F.relu(model.bn1(first)))[:, index]  # type: ignore[operator]
        return second

    at = x0.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(F.mse_loss(feature_map(at), feature_map(x)), at)
    return (x0 + eps * g.sign()).clamp(0, 1).detach()


@pytest.mark.parametrize("chunk", [1, 12, 32, 1000])
def test_scores_equal_the_plain_restatement(network: nn.Module, chunk: int) -> None:
    """However many filters share a pass."""
    few = images(4)
    x = few.images
    x0 = (x + 0.05 * torch.sign(torch.randn(x.shape, dtype=x.dtype,
          generator=torch.Generator().manual_seed(0)))).clamp(0, 1)  # fmt: skip
    frozen = copy.deepcopy(network).requires_grad_(False)
    scores = feature_reverse_accuracy(frozen, x, x0, few.labels, FILTERS, 0.05, chunk)
    together = reversed_images(frozen, x, x0, FILTERS, 0.05)
    for row, (layer, index) in enumerate(FILTERS):
        alone = plain_reversed(network, x, x0, layer, index, 0.05)
        assert torch.allclose(together[row], alone, atol=1e-12)
        with torch.no_grad():
            right = float((network(alone).argmax(1) == few.labels).double().mean())
        assert float(scores[row]) == pytest.approx(right)


def test_pixels_stay_in_range_and_move_one_step(network: nn.Module) -> None:
    few = images(4)
    moved = reversed_images(
        copy.deepcopy(network).requires_grad_(False), few.images, few.images * 0.9, FILTERS, 0.02
    )
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert float((moved - few.images * 0.9).abs().max()) <= 0.02 + 1e-12


def test_at_the_clean_image_nothing_moves(network: nn.Module) -> None:
    """Why the search starts beside it: the square's gradient vanishes at its minimum."""
    few = images(2)
    frozen = copy.deepcopy(network).requires_grad_(False)
    there = reversed_images(frozen, few.images, few.images, FILTERS, 0.1)
    assert torch.equal(there, few.images.expand_as(there))


def test_hand_worked_choice() -> None:
    filters = [("a", i) for i in range(5)] + [("b", i) for i in range(2)]
    scores = torch.tensor([0.5, 0.25, 0.25, 0.75, 0.0, 0.1, 0.0])
    # ⌊5 / 2⌋ = 2 of a, ⌊2 / 2⌋ = 1 of b; of the equals the first.
    assert lowest(filters, scores, 2) == [4, 1, 6]
    assert lowest(filters, scores, 3) == [4]
    assert lowest(filters, scores, 6) == []


def test_a_preactresnet18_loses_75_filters() -> None:
    """⌊C / 64⌋ of every convolution: 5 + 10 + 20 + 40, the three shortcuts among them."""
    network = build_model("excise:preactresnet18", classes=3, input_size=(8, 8), rng=Rng(0))
    units = trace(network, torch.rand(1, 3, 8, 8))
    filters = [(unit.layer, index) for unit in units for index in range(unit.filters)]
    assert len(filters) == 4800
    assert len(lowest(filters, torch.zeros(4800), 64)) == 75


def test_it_cuts_the_lowest_of_each_convolution(network: nn.Module, data: DefenderData) -> None:
    result = FMP(one_in=3, images=5, epsilon=0.1, epochs=0).repair(network, data, Rng(0))
    assert [(e.kind, e.layer) for e in result.edits] == [("silence", "conv1")] * 2 + [
        ("silence", "conv2")
    ] * 2
    for edit in result.edits:
        module = result.model.get_submodule(edit.layer)
        assert not module.weight[edit.index].any()
    one = [e.index for e in result.edits if e.layer == "conv1"]
    out = result.model.bn1(result.model.conv1(torch.randn(2, 1, 6, 6).double()))
    assert not out[:, one].any()
    rows = [row for row in result.history if row["stage"] == "prune"]
    assert [(r["layer"], r["index"]) for r in rows] == [(e.layer, e.index) for e in result.edits]
    assert [row for row in result.history if row["stage"] == "try"][-1]["filters"] == 12


def test_thin_convolutions_are_not_tried(network: nn.Module, data: DefenderData) -> None:
    result = FMP(epochs=0).repair(network, data, Rng(0))
    assert (result.edits, result.history) == ((), ())
    assert result.notes == ("No convolution has 64 filters to try: none was cut.",)


def test_it_can_try_fewer_filters(network: nn.Module, data: DefenderData) -> None:
    result = FMP(one_in=2, max_filters=3, epochs=0).repair(network, data, Rng(0))
    assert result.history[0] == {"stage": "try", "filters": 6, "of": 6}
    assert len(result.edits) == 2


@pytest.mark.parametrize("hold", [True, False])
def test_the_mask_holds_and_can_be_let_go(
    network: nn.Module, data: DefenderData, hold: bool
) -> None:
    result = FMP(one_in=3, epochs=2, hold_mask=hold).repair(network, data, Rng(0))
    cut = [e.index for e in result.edits if e.layer == "conv2"]
    assert bool(result.model.get_parameter("conv2.bias")[cut].any()) is not hold


def test_bad_input(data: DefenderData) -> None:
    with pytest.raises(ModelError, match="a network with convolutions, on which FMP works"):
        FMP().repair(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data, Rng(0))
