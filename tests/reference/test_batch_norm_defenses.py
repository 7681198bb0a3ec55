"""CLP, BNP, ANP, RNP, NFT against hand-worked values and plain restatements of their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.defenses import ANP, BNP, CLP, NFT, RNP
from excise.models import batch_norms, build_model, trace
from excise.models.statistics import input_moments
from excise.scores import channel_lipschitz, outliers, statistics_divergence
from excise.seeding import Rng
from excise.training import Masked, channel_masks
from excise.training.masks import edits_below
from excise.training.scales import perturbed
from excise.training.thresholds import prune_below, thresholds
from excise.types import DefenderData, LabelledImages

pytestmark = pytest.mark.fast


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network():
    """A network whose batch norms have numbers of their own."""
    model = build_model("excise:preactresnet18,width=8", classes=3, input_size=(16, 16), rng=Rng(0))
    draw = generator()
    with torch.no_grad():
        for norm in batch_norms(model, "test").values():
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=draw))
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=draw))
            norm.running_mean.copy_(torch.randn(norm.bias.shape, generator=draw))
            norm.running_var.copy_(torch.rand(norm.bias.shape, generator=draw) + 0.5)
    return model.eval()


@pytest.fixture
def data():
    images = torch.rand(12, 3, 16, 16, generator=generator(1))
    every = LabelledImages(images, torch.arange(12) % 3, ("a", "b", "c"))
    return DefenderData(every.subset(torch.arange(9)), every.subset(torch.arange(9, 12)), "noise")


# --- outliers of a layer -----------------------------------------------------------------------


def test_hand_worked_outliers():
    scores = torch.tensor([1.0, 1.0, 1.0, 10.0])
    assert float(scores.mean()) == 3.25
    assert float(scores.std()) == 4.5
    assert outliers(scores, 1) == [3]
    assert outliers(scores, 3) == []
    assert outliers(torch.tensor([5.0]), 0.1) == []


def test_fewer_than_eleven_channels_never_exceed_three_deviations():
    for n in (10, 11):
        scores = torch.zeros(n, dtype=torch.float64)
        scores[0] = 1
        assert outliers(scores, 3) == ([] if n == 10 else [0])


# --- CLP ---------------------------------------------------------------------------------------


def test_clp_is_the_published_formula(network, data):
    """σ_max by the eigenvalues of W W^T, one filter at a time."""
    expected = set()
    for unit in trace(network, data.train.images):
        if unit.owner is None:
            continue
        weight = network.get_submodule(unit.layer).weight.detach().double()
        norm = network.get_submodule(unit.owner)
        scores = []
        for c in range(unit.filters):
            w = weight[c].reshape(weight.shape[1], -1)
            largest = math.sqrt(float(torch.linalg.eigvalsh(w @ w.T).max()))
            variance = float(norm.running_var[c]) + norm.eps
            scores.append(largest * abs(float(norm.weight.detach()[c])) / math.sqrt(variance))
        score = torch.tensor(scores, dtype=torch.float64)
        ours = channel_lipschitz(
            weight, norm.weight.detach().double(), norm.running_var.double(), norm.eps
        )
        torch.testing.assert_close(ours, score)
        limit = sum(scores) / len(scores) + 1.5 * math.sqrt(
            sum((s - sum(scores) / len(scores)) ** 2 for s in scores) / (len(scores) - 1)
        )
        expected |= {(unit.layer, c) for c, s in enumerate(scores) if s > limit}
    result = CLP(u=1.5).repair(network, data, Rng(0))
    assert expected
    assert {(e.layer, e.index) for e in result.edits} == expected
    assert {e.kind for e in result.edits} == {"silence"}


def test_clp_looks_at_no_pixel(network, data):
    other = DefenderData(
        LabelledImages(1 - data.train.images, data.train.labels, data.train.classes), None, "other"
    )
    method = CLP(u=1.5)
    assert method.repair(network, data, Rng(0)).edits == method.repair(network, other, Rng(1)).edits


def test_clp_needs_a_batch_norm_after_a_convolution(data):
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    with pytest.raises(Exception, match="a network with batch norm right after a convolution"):
        CLP().repair(model, data, Rng(0))


# --- BNP ---------------------------------------------------------------------------------------


def test_hand_worked_divergence():
    one, zero = torch.ones(1), torch.zeros(1)
    d = statistics_divergence(zero, one, one, 4 * one, 0.0)
    assert float(d) == pytest.approx(0.4431, abs=5e-5)
    assert float(statistics_divergence(one, 3 * one, one, 3 * one, 1e-5)) == pytest.approx(0)
    assert statistics_divergence(zero, zero, zero, one, 1e-5).isfinite().all()


def test_moments_are_over_all_images_and_pixels(network, data):
    norms = batch_norms(network, "BNP")
    images = data.everything().images
    inputs = {}
    handles = [
        norm.register_forward_pre_hook(lambda m, i, name=name: inputs.update({name: i[0].clone()}))
        for name, norm in norms.items()
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    moments = input_moments(network, norms, images, batch_size=5)
    assert set(moments) == set(norms)
    for name, (mean, variance) in moments.items():
        values = inputs[name].double()
        torch.testing.assert_close(mean.double(), values.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            variance.double(), values.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6
        )
    assert all(not norm._forward_pre_hooks for norm in norms.values())


def test_bnp_is_the_published_formula(network, data):
    norms = batch_norms(network, "BNP")
    moments = input_moments(network, norms, data.everything().images, 100)
    expected = set()
    for name, norm in norms.items():
        scores = []
        for c in range(norm.num_features):
            m, v = float(moments[name][0][c]), float(moments[name][1][c]) + norm.eps
            mu, var = float(norm.running_mean[c]), float(norm.running_var[c]) + norm.eps
            scores.append(0.5 * math.log(var / v) + (v + (m - mu) ** 2) / (2 * var) - 0.5)
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
        expected |= {(name, c) for c, s in enumerate(scores) if s > mean + 1.5 * std}
    result = BNP(u=1.5).repair(network, data, Rng(0))
    assert expected
    assert {(e.layer, e.index) for e in result.edits} == expected
    for edit in result.edits:
        norm = result.model.get_submodule(edit.layer)
        given = network.get_submodule(edit.layer)
        assert norm.weight[edit.index] == 0
        assert norm.bias[edit.index] == given.bias[edit.index], "β stays"


# --- masks, thresholds -------------------------------------------------------------------------


def test_thresholds_have_no_rounding_errors():
    assert len(thresholds(0.05, 0.9)) == 19
    assert thresholds(0.05, 0.9)[-1] == pytest.approx(0.9)
    assert thresholds(0.02, 0.0) == [0]


def test_edits_below_a_threshold():
    masks = {"a.weight": torch.tensor([0.0, 0.3, 1.0]), "b.weight": torch.tensor([0.2])}
    assert [(e.kind, e.layer, e.index) for e in edits_below(masks, 0.2)] == [
        ("scale", "a", 0), ("scale", "b", 0),
    ]  # fmt: skip


class Counted(nn.Module):
    """Right on as many of ten images as its batch norm has scales left."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(10)

    def forward(self, images):
        return torch.stack([self.norm.weight[:10], torch.full((10,), 0.5)], 1)


@pytest.mark.parametrize(
    ("allowed", "relative", "ends", "kept"),
    [
        (0.2, False, True, 2), (0.19, False, True, 1), (0.2, True, False, 1), (0.21, True, True, 2),
        (0.0, False, True, 0), (1.0, False, False, 10), (1.0, True, False, 9),
    ],
)  # fmt: skip
def test_the_largest_threshold_at_which_accuracy_holds(allowed, relative, ends, kept):
    data = LabelledImages(torch.zeros(10, 1, 2, 2), torch.zeros(10).long(), ("a", "b"))
    rows = []
    edits, history = prune_below(
        Counted().eval(), {"norm.weight": torch.arange(10) / 10 + 0.05}, thresholds(0.1, 1.0), data,
        allowed=allowed, relative=relative, first_failure_ends=ends, batch_size=10,
        on_round=rows.append,
    )  # fmt: skip
    assert [e.index for e in edits] == list(range(kept))
    assert [e.round for e in edits] == sorted(e.round for e in edits)
    assert rows == history


# --- ANP ---------------------------------------------------------------------------------------


def test_masks_of_one_without_perturbation_are_the_plain_network(network, data):
    masked = Masked(
        network, channel_masks(network, [f"{n}.weight" for n in batch_norms(network, "")])
    )
    images, labels = data.train.images, data.train.labels
    changed = perturbed(masked, images, labels, 0.0, 1, generator())
    with torch.no_grad():
        torch.testing.assert_close(masked(images, changed), network(images))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_inner_maximization_is_the_published_one(network, data, steps):
    """One layer at a time by hand: start in the ball, sign steps, back into the ball."""
    names = [f"{name}.weight" for name in batch_norms(network, "")]
    masks = {name: mask.detach() * 0.7 for name, mask in channel_masks(network, names).items()}
    images, labels, eps = data.train.images, data.train.labels, 0.4
    ours = perturbed(Masked(network, masks), images, labels, eps, steps, generator(5))

    draw = generator(5)
    every = [*names, *(name.replace("weight", "bias") for name in names)]
    change = {
        n: (torch.empty(len(network.get_parameter(n))).uniform_(-eps, eps, generator=draw))
        for n in every
    }
    for _ in range(steps):
        parameters = {}
        for n in every:
            change[n].requires_grad_()
            factor = masks[n] + change[n] if n in masks else 1 + change[n]
            parameters[n] = network.get_parameter(n).detach() * factor
        loss = F.cross_entropy(torch.func.functional_call(network, parameters, (images,)), labels)
        gradients = torch.autograd.grad(loss, [change[n] for n in every])
        for n, gradient in zip(every, gradients, strict=True):
            moved = change[n].detach() + eps / steps * gradient.sign()
            change[n] = moved.clamp(-eps, eps)
    for n in every:
        expected = masks[n] + change[n] if n in masks else 1 + change[n]
        torch.testing.assert_close(ours[n].detach(), expected.detach())
    assert set(ours) == set(every)


def test_anp_raises_the_loss_and_keeps_inside_the_ball(network, data):
    names = [f"{name}.weight" for name in batch_norms(network, "")]
    masked = Masked(network, channel_masks(network, names))
    images, labels = data.train.images, data.train.labels
    changed = perturbed(masked, images, labels, 0.3, 2, generator(1))
    assert all(bool(((value - 1).abs() <= 0.3 + 1e-6).all()) for value in changed.values())
    with torch.no_grad():
        assert F.cross_entropy(masked(images, changed), labels) > F.cross_entropy(
            masked(images), labels
        )


def test_anp_ends_with_a_note_where_nothing_may_be_pruned(network, data):
    result = ANP(iterations=1, batch_size=4, max_relative_accuracy_drop=0.0).repair(
        network, data, Rng(0)
    )
    assert result.edits == ()
    assert result.notes == ("No channel was pruned: every threshold cost too much.",)


def test_a_loss_that_is_not_finite_ends_the_masks(network, data):
    with torch.no_grad():
        network.get_parameter("body.linear.weight").fill_(1e38)
    rows = []
    result = ANP(iterations=3, batch_size=4).repair(network, data, Rng(0), on_round=rows.append)
    assert [row["loss"] for row in rows if row["stage"] == "mask"] in (["nan"], ["inf"])
    assert result.history[0]["iteration"] == 1
    assert "The masks diverged in iteration 1; those before it were kept." in result.notes


@pytest.mark.parametrize("method", [NFT(epochs=3), RNP(unlearning_epochs=1, recovering_epochs=3)])
def test_masks_whose_loss_is_not_finite_stay_as_they_were(network, data, method):
    with torch.no_grad():
        network.get_parameter("body.linear.weight").fill_(1e38)
    result = method.repair(network, data, Rng(0))
    assert result.notes
    assert "diverged in epoch 1" in result.notes[0]
    repaired = result.model.state_dict()
    assert all(torch.equal(tensor, repaired[n]) for n, tensor in network.state_dict().items())


# --- RNP, NFT ----------------------------------------------------------------------------------


def test_rnp_prunes_the_given_network_by_scales_alone(network, data):
    method = RNP(
        unlearning_epochs=2, recovering_epochs=3, recovering_rate=20.0, max_accuracy_drop=1.0,
        batch_size=4,
    )  # fmt: skip
    result = method.repair(network, data, Rng(0))
    assert {row["stage"] for row in result.history} == {"unlearn", "recover", "prune"}
    assert result.edits
    assert {edit.kind for edit in result.edits} == {"scale"}
    touched = {f"{edit.layer}.weight" for edit in result.edits}
    repaired = result.model.state_dict()
    for name, tensor in network.state_dict().items():
        assert name in touched or torch.equal(tensor, repaired[name]), name


def test_hand_worked_bounds_of_nft():
    assert NFT().bounds(2) == pytest.approx([0.4852, 0.2943], abs=5e-5)


def test_nft_changes_scales_alone_and_within_its_bounds(network, data):
    result = NFT(epochs=3, learning_rate=5.0, batch_size=4).repair(network, data, Rng(0))
    repaired = result.model.state_dict()
    names = [f"{name}.weight" for name in batch_norms(network, "NFT")]
    bounds = dict(zip(names, NFT().bounds(len(names)), strict=True))
    moved = 0
    for name, tensor in network.state_dict().items():
        if name in bounds:
            mask = repaired[name] / tensor
            assert float(mask.min()) >= bounds[name] - 1e-5
            assert float(mask.max()) <= 1 + 1e-5
            moved += int((mask < 1).sum())
        else:
            assert torch.equal(tensor, repaired[name]), name
    assert moved
