"""Fine-Pruning against hand-worked values and a slow plain restatement, one feature at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.defenses import FP
from excise.errors import DataError, ModelError
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages, Repair

pytestmark = pytest.mark.fast


class Wide(nn.Module):
    """One convolution, ReLU, and a classifier over all its values; an earlier linear layer too."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, features)
        self.norm = nn.BatchNorm1d(features)
        self.last = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.norm(self.first(x.flatten(1)))))
        return logits


def images(n: int, seed: int) -> LabelledImages:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    pictures = torch.rand(n, 1, 4, 4, generator=generator) * 0.5
    pictures[torch.arange(n), 0, labels] += 0.5
    return LabelledImages(pictures, labels, tuple("abcd"))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with Rng(1).scope("wide"):
        model = Wide(100, 4)
        data = images(64, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(data.images), data.labels).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def data() -> DefenderData:
    return DefenderData(images(40, 2), images(30, 3), "made here")


def repair(model: nn.Module, data: DefenderData, **fields: float) -> Repair:
    return FP(**fields).repair(model, data, Rng(0))  # type: ignore[arg-type]


def plain(model: nn.Module, data: DefenderData, drop: float) -> tuple[list[int], list[float]]:
    """One column after the other, one image after the other, as the specification words it."""
    assert data.validation is not None

    def features(images: Tensor) -> list[Tensor]:
        return [
            F.relu(model.norm(model.first(x.flatten()[None])))[0]  # type: ignore[operator]
            for x in images
        ]

    def accuracy(cut: list[int]) -> float:
        right, left = 0, torch.tensor([c not in cut for c in range(100)])
        for h, y in zip(checked, labels, strict=True):
            logits = (weight[:, left] * h[left]).sum(1)
            right += int((logits + bias).argmax() == y)
        return right / len(labels)

    with torch.no_grad():
        weight, bias = model.get_parameter("last.weight"), model.get_parameter("last.bias")
        checked, labels = features(data.validation.images), data.validation.labels
        total = [0.0] * 100
        for h in features(data.train.images):
            total = [a + float(b) for a, b in zip(total, h, strict=True)]
        order = sorted(range(100), key=lambda c: total[c] / len(data.train))
        before = accuracy([])
        cut: list[int] = []
        seen = []
        for c in order:
            seen.append(accuracy([*cut, c]))
            if (before - seen[-1]) / before >= drop - 1e-9:
                break
            cut.append(c)
    return cut, seen


@pytest.mark.parametrize("drop", [0.1, 0.3])
def test_equals_the_plain_restatement(network: nn.Module, data: DefenderData, drop: float) -> None:
    result = repair(network, data, max_relative_accuracy_drop=drop, epochs=0)
    cut, seen = plain(network, data, drop)
    assert cut
    assert [edit.index for edit in result.edits] == cut
    assert {(edit.kind, edit.layer) for edit in result.edits} == {("feature", "last")}
    assert [row["accuracy"] for row in result.history] == pytest.approx(seen)


def test_the_kth_round_has_k_zero_columns(network: nn.Module, data: DefenderData) -> None:
    """With 100 features and a hundredth a round: exactly k, and as many in what is kept."""
    result = repair(network, data, epochs=0)
    assert [row["features"] for row in result.history] == list(range(1, len(result.history) + 1))
    zero = (result.model.last.weight == 0).all(0)
    assert int(zero.sum()) == len(result.edits) == len(result.history) - 1
    assert [edit.round for edit in result.edits] == list(range(1, len(result.edits) + 1))


def test_a_round_is_rounded_up(network: nn.Module, data: DefenderData) -> None:
    result = repair(network, data, share=0.021, max_relative_accuracy_drop=1, epochs=0)
    assert [row["features"] for row in result.history][:3] == [3, 6, 9]
    assert [edit.round for edit in result.edits][:4] == [1, 1, 1, 2]


def test_what_is_kept_is_within_the_bound(network: nn.Module, data: DefenderData) -> None:
    assert data.validation is not None
    result = repair(network, data, epochs=0)

    def accuracy(model: nn.Module) -> float:
        assert data.validation is not None
        with torch.no_grad():
            said = model(data.validation.images).argmax(1)
        return float((said == data.validation.labels).double().mean())

    before = accuracy(network)
    assert (before - accuracy(result.model)) / before < 0.1
    # The round after the last one kept broke it.
    assert (before - float(result.history[-1]["accuracy"])) / before >= 0.1 - 1e-9


def test_a_higher_accuracy_breaks_no_bound(data: DefenderData) -> None:
    """Feature 0 misleads and is the dormant one: cutting it raises accuracy from 0 to 1 … of 2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 1, 0, 0], [9, 0, 0, 0]]))
    x = torch.tensor([[0.2, 0.9, 0.9, 0.9], [0.0, 0.9, 0.9, 0.9]]).view(2, 1, 2, 2)
    two = LabelledImages(x, torch.tensor([0, 0]), ("a", "b"))
    result = FP(share=0.25, epochs=0).repair(model, DefenderData(two, two, "made"), Rng(0))
    assert next(row["accuracy"] for row in result.history) == 1.0
    assert result.edits[0].index == 0


def test_negative_means_come_first() -> None:
    """As in public code: what counts is the mean itself, not its size."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [0.1, 0.1]]))
        model[1].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
        model[2].bias.copy_(torch.tensor([0.0, 0.5]))
    one = LabelledImages(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), ("a", "b"))
    result = FP(share=0.3, epochs=0).repair(model, DefenderData(one, one, "made"), Rng(0))
    assert [edit.index for edit in result.edits] == [1, 2]


@pytest.mark.parametrize("hold", [True, False])
def test_the_mask_holds_and_can_be_let_go(
    network: nn.Module, data: DefenderData, hold: bool
) -> None:
    result = repair(network, data, epochs=2, learning_rate=0.1, hold_mask=hold)
    columns = result.model.last.weight[:, [edit.index for edit in result.edits]]
    assert bool(columns.any()) is not hold


def test_a_bound_of_zero_cuts_nothing(network: nn.Module, data: DefenderData) -> None:
    result = repair(network, data, max_relative_accuracy_drop=0, epochs=0)
    assert (result.edits, result.history) == ((), ())
    for name, before in network.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], before)


def test_a_diverging_fine_tuning_is_said(network: nn.Module, data: DefenderData) -> None:
    result = repair(network, data, learning_rate=1e30, epochs=3)
    assert result.notes[0].startswith("Stage tune diverged in epoch")
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_bad_input(network: nn.Module, data: DefenderData) -> None:
    with pytest.raises(DataError, match="validation images for Fine-Pruning"):
        repair(network, replace(data, validation=None))
    with pytest.raises(ModelError, match="last step is a linear layer"):
        repair(nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten()), data)
