"""MM-BD and MM-BM against hand-worked values and slow plain restatements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from excise import registry
from excise.defenses import MMBM
from excise.detection import MMBD
from excise.detection.mm_bd import largest_stands_out
from excise.errors import DataError, ModelError, SpecError
from excise.inversion.margin_climb import margins
from excise.models import Clamped, additions, build_model, load_bundle, save_bundle
from excise.seeding import Rng
from excise.testing import differences
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast

K = 6


def network(kind: str = "norms") -> nn.Module:
    """Two blocks over 1 × 6 × 6 pixels, with batch norms that normalize something, or without."""
    norms = (nn.BatchNorm2d(4), nn.BatchNorm2d(5)) if kind == "norms" else (nn.Identity(),) * 2
    with Rng(0).scope("network"):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 5, 3), norms[1], nn.ReLU(),
            nn.Flatten(), nn.Linear(20, K),
        )  # fmt: skip
        net.train()(torch.rand(50, 1, 6, 6))
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return net.eval()


def data(net: nn.Module, n: int = 24) -> DefenderData:
    """Images, each with the label the network gives it."""
    images = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = net(images).argmax(1)
    return DefenderData(LabelledImages(images, labels, tuple("abcdef")), None, "noise")


# --- MM-BD: margins -----------------------------------------------------------------------------


def test_hand_worked_margins() -> None:
    logits = torch.tensor([[1.0, 5, 2], [4, 3, 3.5], [-7, -9, -8]])
    assert margins(logits, torch.tensor([1, 1, 2])).tolist() == [3, -1, -1]


def climbed_alone(net: nn.Module, images: Tensor, target: int, fields: MMBD) -> float:
    """The climb of one class as published: a fresh SGD a step, clipped on the way in."""
    images = images.clone().requires_grad_()
    onehot = F.one_hot(torch.full((len(images),), target), K)
    last = 1000.0
    for number in range(fields.steps):
        optimizer = torch.optim.SGD([images], lr=fields.learning_rate, momentum=0.2)
        optimizer.zero_grad()
        outputs = net(images.clamp(0, 1))
        margin = (outputs * onehot).sum(1) - ((1 - onehot) * outputs - 1000 * onehot).max(1)[0]
        loss = -margin.sum()
        loss.backward()
        optimizer.step()
        if number and abs(last - float(loss.detach())) / abs(last) < fields.tolerance:
            break
        last = float(loss.detach())
    return float(margin.detach().max())


@pytest.mark.parametrize("chunk", [4, 1024])
def test_all_classes_at_once_climb_as_each_does_alone(chunk: int) -> None:
    fields = MMBD(starts=3, steps=40, learning_rate=0.1, tolerance=1e-2, chunk=chunk)
    net, rows = network(), list[Any]()
    starts = torch.rand(K, 3, 1, 6, 6, generator=Rng(2).torch("starts"))
    said = fields.scan(net, data(net), Rng(2), on_round=rows.append)
    alone = [climbed_alone(net, starts[t], t, fields) for t in range(K)]
    assert said.per_class == pytest.approx(alone, rel=1e-4)
    left = [row["climbing"] for row in rows]
    assert left == sorted(left, reverse=True)
    assert left[0] == K
    assert left[-1] < K, "some class stops before the last step"


# --- MM-BD: the p-value ---------------------------------------------------------------------------


def test_the_p_value_is_that_of_the_largest_of_k_draws() -> None:
    values = [3.1, 2.7, 9.5, 3.6, 2.9, 3.3, 4.0, 2.5, 3.0, 3.8]
    rest = [value for value in values if value != 9.5]
    shape, location, scale = stats.gamma.fit(rest)
    expected = 1 - stats.gamma.cdf(9.5, shape, loc=location, scale=scale) ** 10
    assert largest_stands_out(values) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert largest_stands_out(values) < 0.05
    assert largest_stands_out([*rest, 4.1]) > 0.05


def test_a_tiny_p_value_is_no_zero() -> None:
    """1 − (1 − s)^K ≈ K · s where s is far below the last digit of 1."""
    rest = [3.1, 2.7, 3.6, 2.9, 3.3, 4.0, 2.5, 3.0, 3.8]
    shape, location, scale = stats.gamma.fit(rest)
    tail = stats.gamma.sf(30, shape, loc=location, scale=scale)
    assert 0 < tail < 1e-17
    assert largest_stands_out([*rest, 30]) == pytest.approx(10 * tail)


def test_margins_without_spread() -> None:
    assert largest_stands_out([2.0] * 5) == 1
    assert largest_stands_out([2.0] * 4 + [2.5]) == 0


def test_where_the_fit_fails_a_normal_distribution_stands_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rest, largest = [1.0, 2, 3, 4], 6.0
    for outcome in (ValueError("no"), (math.nan, 0.0, 1.0)):

        def fit(values: np.ndarray, outcome: Any = outcome) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(stats.gamma, "fit", fit)
        tail = stats.norm.sf(largest, np.mean(rest), np.std(rest))
        assert largest_stands_out([*rest, largest]) == pytest.approx(1 - (1 - tail) ** 5)


class Reach(nn.Module):
    """Logit c is the brightness of the image times the reach of c."""

    def __init__(self, *reach: float) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.tensor([reach], dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * self.reach


def four(classes: int = 6) -> DefenderData:
    images = LabelledImages(
        torch.rand(6, 1, 2, 2), torch.zeros(6).long(), tuple("abcdef")[:classes]
    )
    return DefenderData(images, None, "noise")


def test_a_class_out_of_line_is_an_alarm() -> None:
    fields = MMBD(starts=2, steps=200, learning_rate=1.0)
    said = fields.scan(Reach(1, 1.2, 1.1, 30, 0.9, 1.05), four(), Rng(0))
    assert said.backdoored
    assert said.targets == (3,)
    assert said.per_class[3] == pytest.approx(30 - 1.2)
    assert said.statistic > said.threshold == pytest.approx(-math.log10(0.05))
    assert said.notes[0].startswith("The largest margin has p = ")


def test_no_class_out_of_line_is_none() -> None:
    fields = MMBD(starts=2, steps=20)
    said = fields.scan(Reach(1, 1, 1, 1, 1, 1), four(), Rng(0))
    assert not said.backdoored
    assert said.targets == ()
    assert said.statistic == 0


def test_the_images_play_no_part() -> None:
    net = network()
    first = MMBD(starts=2, steps=3).scan(net, data(net), Rng(0))
    second = MMBD(starts=2, steps=3).scan(net, data(net, 12), Rng(0))
    assert first.per_class == second.per_class


def test_too_few_classes() -> None:
    with pytest.raises(DataError, match=r"at least 4 classes, .* got 3\. .*excise list scanners"):
        MMBD().scan(Reach(1, 2, 3), four(3), Rng(0))


def test_logits_that_are_not_finite() -> None:
    with pytest.raises(ModelError, match="expected finite logits, got NaN or infinity"):
        MMBD(starts=1, steps=2).scan(Reach(1, 2, 3, math.nan, 5, 6), four(), Rng(0))


# --- MM-BM ----------------------------------------------------------------------------------------


def lowered_plainly(net: nn.Module, images: Tensor, labels: Tensor, fields: MMBM, rng: Rng) -> Any:
    """The bounds of the two-block network, every step written out."""
    bounds = [torch.full((c,), fields.first_bound, requires_grad=True) for c in (4, 5)]
    modules = list(net.children())

    def clamped(x: Tensor) -> Tensor:
        for number, module in enumerate(modules):
            x = module(x)
            if number in (1, 4):
                x = torch.min(x, bounds[number // 4].view(1, -1, 1, 1))
        return x

    with torch.no_grad():
        right = net(images).argmax(1) == labels
        images, labels = images[right], labels[right]
        wanted = net(images)
    adam, weight, trail = torch.optim.Adam(bounds, lr=fields.learning_rate), fields.penalty, []
    size = min(fields.batch_size, math.ceil(len(images) / fields.least_steps))
    for epoch in range(1, fields.epochs + 1):
        correct = 0
        trail.append(weight)
        for index in torch.randperm(len(images), generator=rng.torch(f"epoch/{epoch}")).split(size):
            logits = clamped(images[index])
            loss = ((logits - wanted[index]) ** 2).mean()
            loss = loss + weight * 3 * sum(b.square().sum().sqrt() for b in bounds) / 2
            adam.zero_grad()
            loss.backward()
            adam.step()
            correct += int((logits.argmax(1) == labels[index]).sum())
        if epoch >= 2 * fields.adapt_every and epoch % fields.adapt_every == 0:
            good = correct / len(images) >= fields.least_accuracy
            weight = weight * fields.factor if good else weight / fields.factor
    return bounds, trail


@pytest.mark.parametrize("least_accuracy", [0.2, 1.0])
def test_the_bounds_are_those_of_a_plain_restatement(least_accuracy: float) -> None:
    net = network()
    given = data(net)
    labels = given.train.labels.clone()
    labels[:5] = (labels[:5] + 1) % K  # what the network gets wrong is left out
    given = DefenderData(
        LabelledImages(given.train.images, labels, given.train.classes), None, "noise"
    )
    fields = MMBM(epochs=9, adapt_every=2, learning_rate=0.2, first_bound=2.0, penalty=0.1,
                  least_accuracy=least_accuracy)  # fmt: skip
    result = fields.repair(net, given, Rng(3))
    bounds, trail = lowered_plainly(net, given.train.images, labels, fields, Rng(3))
    for layer, bound in zip(("1", "4"), bounds, strict=True):
        clamp = result.model.get_submodule(layer)
        assert isinstance(clamp, Clamped)
        assert torch.allclose(clamp.bound, bound.detach(), atol=1e-4)
    assert [row["penalty"] for row in result.history] == pytest.approx(trail)
    assert trail[4] == pytest.approx(0.1 * (1.2 if least_accuracy < 0.5 else 1 / 1.2))
    assert trail[3] == pytest.approx(0.1)


def test_nothing_exceeds_its_bound_and_high_bounds_change_nothing() -> None:
    net = network()
    images = data(net).train.images
    result = MMBM(epochs=6, learning_rate=0.5, first_bound=2.0).repair(net, data(net), Rng(0))
    assert [(e.kind, e.layer, e.index) for e in result.edits] == [
        ("clamp", "1", None), ("clamp", "4", None),
    ]  # fmt: skip
    assert additions(result.model) == [("clamp", "1"), ("clamp", "4")]
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in ("1", "4"):
        clamp = result.model.get_submodule(layer)
        handle = clamp.register_forward_hook(
            lambda module, _, output: seen.append((output.detach(), module.bound))
        )
        result.model(images)
        handle.remove()
    assert all((output <= bound.view(1, -1, 1, 1)).all() for output, bound in seen)
    assert any((output == bound.view(1, -1, 1, 1)).any() for output, bound in seen)
    untouched = MMBM(epochs=0, first_bound=1e6).repair(net, data(net), Rng(0)).model
    assert torch.equal(untouched(images), net(images))


def test_without_batch_norm_convolutions_are_clamped() -> None:
    net = network("plain")
    result = MMBM(epochs=1).repair(net, data(net), Rng(0))
    assert [edit.layer for edit in result.edits] == ["0", "3"]


def test_the_clamps_are_saved_and_come_back(tmp_path: Any) -> None:
    net = build_model("excise:preactresnet18,width=8", classes=3, input_size=(8, 8), rng=Rng(0))
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = net.eval()(images).argmax(1)
    given = DefenderData(LabelledImages(images, labels, ("a", "b", "c")), None, "noise")
    fields = MMBM(epochs=3, first_bound=1.0, learning_rate=0.3)
    repaired = fields.repair(net, given, Rng(0)).model
    save_bundle(tmp_path / "repaired", repaired, {})  # type: ignore[arg-type]
    loaded, _ = load_bundle(tmp_path / "repaired")
    assert differences(loaded, repaired) == []
    assert len(additions(loaded)) == 16
    with torch.no_grad():
        assert torch.equal(loaded(images), repaired(images))
        assert not torch.equal(loaded(images), net(images))


def test_a_divergence_ends_with_the_last_good_bounds() -> None:
    net = network()
    result = MMBM(epochs=5, penalty=3e38).repair(net, data(net), Rng(0))
    assert result.notes == ("Stage bound diverged in epoch 1; the last good state was kept.",)
    assert (result.model.get_submodule("1").bound == 8).all()
    assert len(result.history) == 1


def test_a_network_without_layers_to_clamp() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, K))
    with pytest.raises(ModelError, match=r"a network with batch norms or convolutions, .* got Seq"):
        MMBM().repair(net, data(net), Rng(0))


def test_a_network_with_clamps_already() -> None:
    net = network()
    once = MMBM(epochs=1).repair(net, data(net), Rng(0)).model
    with pytest.raises(ModelError, match="a layer to which nothing was added yet"):
        MMBM(epochs=1).repair(once, data(net), Rng(0))


def test_no_image_it_gets_right() -> None:
    net = network()
    images = data(net).train
    wrong = LabelledImages(images.images, (images.labels + 1) % K, images.classes)
    with pytest.raises(DataError, match=r"an image that the network gets right, .* got 24 images"):
        MMBM().repair(net, DefenderData(wrong, None, "noise"), Rng(0))


@pytest.mark.parametrize(
    ("kind", "name", "fields", "message"),
    [
        ("scanner", "mm-bd", {"starts": 0}, "starts of mm-bd to be greater than or equal to 1"),
        ("scanner", "mm-bd", {"significance": 1}, "significance of mm-bd to be less than 1"),
        ("defense", "mm-bm", {"factor": 1}, "factor of mm-bm to be greater than 1"),
        ("defense", "mm-bm", {"first_bound": 0}, "first_bound of mm-bm to be greater than 0"),
    ],
)
def test_values_out_of_range(kind: Any, name: str, fields: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        registry.build(kind, name, fields)
