"""MCR against values worked by hand and plain restatements of its specification."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import one_convolution
from torch import nn

from excise.defenses import MCR
from excise.errors import DataError
from excise.models.statistics import re_estimate
from excise.seeding import Rng
from excise.training.curve import bezier, connect, load_weights, piecewise, weights_of
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


@pytest.fixture
def network() -> nn.Module:
    return one_convolution()


@pytest.fixture(scope="module")
def data() -> DefenderData:
    labels = torch.arange(36) % 3
    images = torch.rand(36, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    images[torch.arange(36), 0, :, labels * 2] += 0.5
    every = LabelledImages(images, labels, ("a", "b", "c"))
    return DefenderData(every.subset(torch.arange(24)), every.subset(torch.arange(24, 36)), "made")


def test_worked_points() -> None:
    """Ends 0 and 1, middle 2: φ(.5) = 0 + .5 · 2 + .25 · 1 = 1.25; φ(.1) = .18 · 2 + .01 = .37."""
    first, middle, last = ({"w": torch.tensor([v])} for v in (0.0, 2.0, 1.0))
    point = lambda t: float(bezier(first, middle, last, t)["w"])  # noqa: E731
    assert point(0) == 0
    assert point(1) == 1
    assert point(0.5) == 1.25
    assert point(0.1) == pytest.approx(0.37)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.37, 1.0])
def test_the_shares_add_up_to_1(t) -> None:
    one = {"w": torch.ones(1)}
    assert float(bezier(one, one, one, t)["w"]) == pytest.approx(1)


def test_worked_rates() -> None:
    assert piecewise(0.01, 0.0) == piecewise(0.01, 0.5) == 0.01
    assert piecewise(0.01, 0.7) == pytest.approx(0.00505)
    assert piecewise(0.01, 0.9) == pytest.approx(0.0001)
    assert piecewise(0.01, 1.0) == pytest.approx(0.0001)


def test_theta_takes_its_share_of_the_gradient(network, data) -> None:
    """One step over all images, restated; the draws are those of the curve's own generator."""
    first = weights_of(network)
    last = {name: w + 0.1 for name, w in first.items()}
    bend = copy.deepcopy(network)
    load_weights(bend, {name: w + 0.05 for name, w in first.items()})
    start = weights_of(bend)
    connect(
        bend, first, last, data.train, Rng(3), epochs=1, learning_rate=0.1, weight_decay=0.01,
        batch_size=24,
    )  # fmt: skip

    t = float(torch.rand((), generator=Rng(3).torch("t")))
    here = copy.deepcopy(network).train()
    load_weights(here, bezier(first, start, last, t))
    loss = F.cross_entropy(here(data.train.images), data.train.labels)
    loss = loss + 0.005 * sum(p.pow(2).sum() for p in here.parameters())
    loss.backward()
    for name, p in here.named_parameters():
        assert p.grad is not None
        wanted = start[name] - 0.1 * 2 * t * (1 - t) * p.grad
        torch.testing.assert_close(bend.get_parameter(name), wanted, msg=name)


def test_statistics_are_those_of_all_images(network, data) -> None:
    """In whatever batches: the mean of all images; the variance as the mean over batches."""
    images = data.train.images
    model = copy.deepcopy(network)
    with torch.no_grad():
        model.bn.running_mean += 100  # what was there does not count
        maps = model.conv(images)
    re_estimate(model, images, 24)
    torch.testing.assert_close(model.bn.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(model.bn.running_var, maps.var((0, 2, 3)))
    re_estimate(model, images, 10)  # three batches of eight
    torch.testing.assert_close(model.bn.running_mean, maps.mean((0, 2, 3)))
    parts = torch.stack([part.var((0, 2, 3)) for part in maps.split(8)])
    torch.testing.assert_close(model.bn.running_var, parts.mean(0))
    assert model.bn.momentum == network.bn.momentum
    assert not model.training
    assert not model.bn.training


@pytest.mark.parametrize("n", [2, 3, 5, 15])
def test_no_batch_of_statistics_is_a_single_image(n) -> None:
    """Where the last map has one pixel, batch norm could not tell one image's variance."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten())
    images = torch.rand(n, 1, 2, 2)
    re_estimate(model, images, 2)
    torch.testing.assert_close(model[1].running_mean, model[0](images).mean((0, 2, 3)))


def test_a_network_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = weights_of(model)
    re_estimate(model, torch.rand(3, 1, 2, 2), 2)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_which_end_is_which(network, data) -> None:
    """t = 0 gives the weights back; t = 1 is the fine-tuned network, whatever the curve does."""
    fields = {"tune_epochs": 3, "epochs": 2, "tune_rate": 0.1}
    start = MCR(t=0.0, **fields).repair(network, data, Rng(0)).model
    end = MCR(t=1.0, **fields).repair(network, data, Rng(0)).model
    tuned = MCR(t=1.0, **fields | {"epochs": 0}).repair(network, data, Rng(0)).model
    for name, was in network.named_parameters():
        assert torch.equal(start.get_parameter(name), was)
        assert torch.equal(end.get_parameter(name), tuned.get_parameter(name))
        assert not torch.equal(end.get_parameter(name), was)
    # Statistics of both are measured anew.
    with torch.no_grad():
        means = network.conv(data.train.images).mean((0, 2, 3))
    torch.testing.assert_close(start.bn.running_mean, means)


def test_the_middle_is_taken_where_all_points_do(network, data) -> None:
    result = MCR(tune_epochs=1, epochs=1, max_accuracy_drop=1).repair(network, data, Rng(0))
    middle = MCR(tune_epochs=1, epochs=1, t=0.5).repair(network, data, Rng(0))
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, middle.model.state_dict()[name])
    rows = [row for row in result.history if row["stage"] == "choose"]
    assert [row["t"] for row in rows] == [i / 10 for i in range(1, 10)]


def test_two_points_equally_near_the_middle_give_the_tuned_side(network, data) -> None:
    fields = {"tune_epochs": 2, "epochs": 2}
    result = MCR(points=2, max_accuracy_drop=1, **fields).repair(network, data, Rng(0))
    later = MCR(t=2 / 3, **fields).repair(network, data, Rng(0))
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, later.model.state_dict()[name])


def test_a_curve_that_keeps_no_accuracy_says_so(network, data) -> None:
    """The given network is always right; what it is trained to say is always wrong."""
    with torch.no_grad():
        wanted = network(data.validation.images).argmax(1)
    wrong = (wanted[:1] + 1) % 3
    assert not (wanted == wrong).any()
    torn = replace(
        data,
        train=replace(data.train, labels=wrong.repeat(len(data.train))),
        validation=replace(data.validation, labels=wanted),
    )
    fields = {"tune_epochs": 10, "tune_rate": 0.5, "epochs": 10, "learning_rate": 0.5}
    result = MCR(**fields, points=3, max_accuracy_drop=0).repair(network, torn, Rng(0))
    assert result.notes == ("No point of the curve kept the accuracy; the best was taken.",)


def test_validation_is_needed_only_to_choose(network, data) -> None:
    alone = replace(data, validation=None)
    with pytest.raises(DataError, match="expected validation images for MCR"):
        MCR().repair(network, alone, Rng(0))
    assert MCR(t=0.5, tune_epochs=1, epochs=1).repair(network, alone, Rng(0)).notes == ()
