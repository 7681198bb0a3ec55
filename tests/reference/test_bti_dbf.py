"""BTI-DBF and BTI-DBF(U) against hand-worked values and slow plain restatements."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise import registry
from excise.defenses.bti_dbf import BTIDBFU
from excise.errors import ModelError, SpecError
from excise.inversion.bti_dbf import BTIDBF
from excise.inversion.decoupling import Decoupling, Drawn, Search, through
from excise.inversion.masked import squash
from excise.inversion.unet import UNet
from excise.seeding import Rng
from excise.types import DefenderData, LabelledImages, ignore_round

pytestmark = pytest.mark.fast

SMALL = {"width": 2, "blocks": 1, "pretrain_epochs": 1, "mask_epochs": 1, "generator_epochs": 1}


class Tiny(nn.Module):
    """F is what ``body`` gives: ``(n, 4, 2, 2)``; h is pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Tanh()
        )
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.body(x).mean((2, 3)))
        return logits


@pytest.fixture
def net() -> nn.Module:
    with Rng(1).scope("tiny"):
        return Tiny().double().eval()


def labelled(n: int = 6) -> LabelledImages:
    """Images that mirroring and cropping by 4 // 8 = 0 pixels leave alone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return LabelledImages(images, torch.arange(n) % 3, ("a", "b", "c"))


def given(n: int = 6) -> DefenderData:
    return DefenderData(labelled(n), None, "made here")


def search(net: nn.Module, **fields: object) -> Search:
    settings = Decoupling(**{**SMALL, **fields})  # type: ignore[arg-type]
    return Search(settings, net, labelled(), Rng(0), ignore_round)


# --- hand-worked values -----------------------------------------------------------------------


def test_hand_worked_masks() -> None:
    """tanh(½ ln 3) = ½, so M = ¾; the mask stays inside (0, 1)."""
    assert squash(torch.tensor([0.0, 0.5 * math.log(3)])).tolist() == pytest.approx([0.5, 0.75])
    ends = squash(torch.tensor([-40.0, 40.0], dtype=torch.float64))
    assert 0 < ends[0] < ends[1] < 1


def test_what_a_module_gives_is_replaced_while_the_block_runs(net: nn.Module) -> None:
    x = labelled().images
    with torch.no_grad():
        before = net(x)
        with through(net.body, lambda maps: 0 * maps):
            assert torch.equal(net(x), net.linear.bias.expand(6, 3))
        assert torch.equal(net(x), before)
        with pytest.raises(ZeroDivisionError), through(net.body, lambda maps: 0 * maps):
            raise ZeroDivisionError
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (5, 9), (3, 3)])
def test_the_generator_begins_near_the_identity_at_any_size(size: tuple[int, int]) -> None:
    with Rng(0).scope("unet"):
        unet = UNet(3, size, 4, 4)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = unet(x)
    assert drawn.shape == x.shape
    assert 0 < float(F.mse_loss(drawn, x)) < 0.012
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert len(unet.up) == {32: 4, 8: 2, 5: 1, 3: 0}[size[0]]


# --- slow plain restatements ------------------------------------------------------------------


def features(net: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = net.body(x)
    return found


def head(net: nn.Module, maps: Tensor) -> Tensor:
    logits: Tensor = net.linear(maps.mean((2, 3)))
    return logits


def log_p(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.exp()[label] / logits.exp().sum()).log()


def mean_square(one: Tensor, other: Tensor) -> Tensor:
    return (
        sum(
            ((a - b) ** 2 for a, b in zip(one.flatten(), other.flatten(), strict=True)),
            0 * one.sum(),
        )
        / one.numel()
    )  # type: ignore[return-value]


def test_decoupling(net: nn.Module) -> None:
    """The loss of the first step, and the mask after it: Adam moves each number by its rate."""
    work = search(net)
    raw = torch.empty(1, 4, 2, 2, dtype=torch.float64)
    raw.normal_(generator=work.rng.torch("mask/1")).requires_grad_()
    m = raw.tanh() / (2 + 1e-7) + 0.5
    total = torch.zeros((), dtype=torch.float64)
    for image, label in zip(work.data.images, work.data.labels, strict=True):
        f = features(net, image[None])
        total = total - log_p(head(net, m * f)[0], label) / 6
        total = total + log_p(head(net, (1 - m) * f)[0], label) / 6
    (gradient,) = torch.autograd.grad(total, raw)
    mask, finite = work.decouple(1)
    assert finite
    assert work.history[0]["loss"] == pytest.approx(float(total.detach()))
    assert torch.allclose(mask, squash(raw.detach() - 0.01 * gradient.sign()), atol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "target"),
    [({}, None), ({}, 2), ({"pixel_bound": 1e-9}, None), ({"benign_bound": 1e-12}, 1)],
)
def test_inversion(net: nn.Module, bounds: dict[str, float], target: int | None) -> None:
    work = search(net, **bounds)
    generator = copy.deepcopy(work.generator)
    mask = squash(torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(1)).double())
    x = work.data.images
    with torch.no_grad():
        drawn = generator(x)
        f, g = features(net, x), features(net, drawn)
        if bounds:
            expected = float(mean_square(drawn, x))
        else:
            expected = float(0.01 * mean_square(mask * f, mask * g))
            expected -= float(mean_square((1 - mask) * f, (1 - mask) * g))
        if target is not None:
            expected -= float(sum(log_p(logits, torch.tensor(target)) for logits in net(drawn)) / 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert work.invert(mask, 1, target)
    assert work.history[0]["loss"] == pytest.approx(expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    moved = [
        not torch.equal(a, b)
        for a, b in zip(generator.parameters(), work.generator.parameters(), strict=True)
    ]
    assert any(moved)


def test_pretraining(net: nn.Module) -> None:
    work = search(net)
    x = work.data.images
    with torch.no_grad():
        drawn = work.generator(x)
        expected = mean_square(features(net, x), features(net, drawn)) + 100 * mean_square(x, drawn)
        for p, logits in zip(net(x).softmax(1), net(drawn), strict=True):
            expected = expected - sum(p[k] * log_p(logits, torch.tensor(k)) for k in range(3)) / 6
    assert work.pretrain()
    assert work.history[0]["loss"] == pytest.approx(float(expected))


def test_the_target_is_what_most_images_get(net: nn.Module) -> None:
    work = search(net, noise=0.0)
    counts = [0, 0, 0]
    for image in work.data.images:
        counts[int(net(work.generator(image[None])).argmax())] += 1
    assert work.target() == counts.index(max(counts))


def test_unlearning(net: nn.Module) -> None:
    """int(.1 · 6 + 1) = 1 image of six is drawn; both losses, in train mode, clean images first."""
    data = given()
    fields = {**SMALL, "rounds": 1, "unlearn_epochs": 1}
    result = BTIDBFU(**fields).repair(net, data, Rng(0))
    assert [row["stage"] for row in result.history] == ["pretrain", "decouple", "invert", "unlearn"]

    work = Search(Decoupling(**SMALL), copy.deepcopy(net), data.train, Rng(0), ignore_round)
    work.pretrain()
    work.invert(work.decouple(1)[0], 1, None)
    plain = copy.deepcopy(net).train()
    order = torch.randperm(6, generator=Rng(0).child("unlearn/1").torch("epoch/1"))
    x, y = data.train.images[order], data.train.labels[order]
    chosen = int(torch.randperm(6, generator=Rng(0).torch("chosen/1"))[0])
    mixed = x.clone()
    with torch.no_grad():
        mixed[chosen] = work.generator(x[chosen : chosen + 1])[0]
        benign, changed = features(plain, x), features(plain, mixed)
        total = mean_square(benign, changed)
        for logits, label in zip(head(plain, changed), y, strict=True):
            total = total - log_p(logits, label) / 6
    assert result.history[-1]["loss"] == pytest.approx(float(total))
    # Two batches passed through the batch norm.
    assert int(result.model.body[1].num_batches_tracked) == 2


def test_its_trigger_leads_images_of_other_classes_to_its_target(net: nn.Module) -> None:
    data = DefenderData(labelled(), labelled(9), "made here")
    (found,) = BTIDBF(**SMALL).fit(net, data, Rng(0))
    held = labelled(9)
    rest = held.images[held.labels != found.target]
    hits = [int(net(found(image[None])).argmax()) == found.target for image in rest]
    assert found.evidence.flip_rate == pytest.approx(sum(hits) / len(hits))
    sizes = [float((found(i[None]) - i).abs().sum()) for i in labelled().images]
    assert found.evidence.size == pytest.approx(sum(sizes) / 6)
    (unheld,) = BTIDBF(**SMALL).fit(net, given(), Rng(0))
    assert unheld.evidence.flip_rate is None


def test_a_drawn_trigger_takes_pictures_of_any_type() -> None:
    with Rng(0).scope("unet"):
        trigger = Drawn(UNet(1, (4, 4), 2, 1).double().eval())
    x = labelled().images
    assert trigger(x.float()).dtype == torch.float32
    assert torch.allclose(trigger(x.float()).double(), trigger(x), atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------


def test_a_network_without_feature_maps_is_refused_before_any_work() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    rows: list[object] = []
    for method in (BTIDBFU().repair, BTIDBF().fit):
        with pytest.raises(ModelError, match="expected a network with feature maps"):
            method(model, given(), Rng(0), on_round=rows.append)
    assert rows == []


@pytest.mark.parametrize("kind", ["inverter", "defense"])
@pytest.mark.parametrize(("field", "value"), [("pixel_bound", 0), ("width", 0), ("mask_rate", 0)])
def test_values_out_of_range(kind: registry.Kind, field: str, value: float) -> None:
    with pytest.raises(SpecError, match=field):
        registry.build(kind, "bti-dbf", {field: value})


@pytest.mark.parametrize(
    ("rate", "stage"),
    [("generator_rate", "pretrain"), ("mask_rate", "decouple"), ("learning_rate", "unlearn")],
)
def test_a_loss_that_is_not_finite_ends_it(net: nn.Module, rate: str, stage: str) -> None:
    fields = {**SMALL, "rounds": 3, "unlearn_epochs": 3, "pretrain_epochs": 3, "mask_epochs": 3}
    result = BTIDBFU(**{**fields, rate: 1e308}).repair(net, given(), Rng(0))
    assert result.history[-1]["stage"] == stage
    assert f"Stage {stage} diverged" in result.notes[-1]
    assert all(p.isfinite().all() for p in result.model.parameters())
