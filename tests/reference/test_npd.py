"""NPD against hand-worked values and a slow plain restatement, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from excise.defenses import NPD
from excise.errors import DataError, ModelError
from excise.models import add, additions, build_model
from excise.models.late_layer import late_layer
from excise.seeding import Rng
from excise.training.runner_up import best_but, runner_up_examples
from excise.training.unlikelihood import unlikelihood
from excise.types import DefenderData, Edit, LabelledImages

pytestmark = pytest.mark.fast


class Tiny(nn.Module):
    """Two convolutions; the first feeds a batch norm of its own, the second a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = x + self.conv2(torch.tanh(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@pytest.fixture
def net() -> nn.Module:
    with Rng(1).scope("tiny"):
        model = Tiny().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand(
        n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def given(n: int) -> DefenderData:
    labelled = LabelledImages(pictures(n), torch.arange(n) % 3, ("a", "b", "c"))
    return DefenderData(labelled, None, "made here")


# --- hand-worked values -----------------------------------------------------------------------


def test_hand_worked_unlikelihood() -> None:
    """p = (.7, .2, .1): −ln .3, −ln .8, −ln .9; a sure network has a loss and a gradient."""
    logits = torch.tensor([[0.7, 0.2, 0.1]] * 3).log()
    found = unlikelihood(logits, torch.arange(3))
    assert found.tolist() == pytest.approx([-math.log(0.3), -math.log(0.8), -math.log(0.9)])
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    unlikelihood(sure, torch.tensor([0])).sum().backward()
    assert sure.grad is not None
    assert sure.grad.tolist() == [[1, -1]]


def test_the_runner_up_is_the_best_class_but_the_true_one() -> None:
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1]])
    assert best_but(logits, torch.tensor([0, 2])).tolist() == [1, 0]


def test_a_fresh_plug_changes_next_to_nothing(net: nn.Module) -> None:
    """Logits move by less than 1e-4, by the batch norm's ε alone."""
    x = pictures(8)
    with torch.no_grad():
        before = net(x)
        add(net, "plug", "conv1")
        assert 0 < float((net(x) - before).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("excise:preactresnet18,width=8", "layer4.1.conv1"),
        ("excise:vgg19_bn,width=4", "features.49"),
        ("torchvision:mobilenet_v3_large", "features.16.0"),
        ("torchvision:efficientnet_b3", "features.8.0"),
    ],
)
def test_tracing_gives_the_layers_the_authors_name(arch: str, layer: str) -> None:
    model = build_model(arch, classes=3, input_size=(32, 32), rng=Rng(0))
    assert late_layer(model, torch.zeros(1, 3, 32, 32), "NPD") == f"body.{layer}"


# --- a slow plain restatement -----------------------------------------------------------------


def plain_examples(net: nn.Module, x: Tensor, y: Tensor, norm: float, size: float) -> Tensor:
    """Two steps of the inner problem, each image alone but for the test whether to go on."""
    targets = []
    for image, label in zip(x, y, strict=True):
        logits = net(image[None])[0].detach().tolist()
        targets.append(max((k for k in range(3) if k != int(label)), key=lambda k: logits[k]))
    deltas = [torch.zeros_like(image) for image in x]
    for step in range(2):
        said = [
            int(net((i + d).clamp(0, 1)[None]).argmax()) for i, d in zip(x, deltas, strict=True)
        ]
        hits = sum(s == t for s, t in zip(said, targets, strict=True))
        if step and hits / len(x) > 0.6:
            break
        for i, image in enumerate(x):
            delta = deltas[i].clone().requires_grad_(True)
            p = net((image + delta).clamp(0, 1)[None]).softmax(1)[0, targets[i]]
            (gradient,) = torch.autograd.grad(-p.log(), delta)
            moved = delta.detach() - size * gradient.sign()
            length = float(moved.square().sum().sqrt())
            deltas[i] = moved * (norm / length) if length > norm else moved
    return torch.stack([(i + d).clamp(0, 1) for i, d in zip(x, deltas, strict=True)])


@pytest.mark.parametrize(("norm", "size"), [(3.0, 0.1), (0.25, 0.1), (3.0, 0.6)])
def test_examples_are_those_of_the_paper(net: nn.Module, norm: float, size: float) -> None:
    x, y = pictures(10), torch.arange(10) % 3
    found, said, target = runner_up_examples(
        net, x, y, norm=norm, steps=2, step_size=size, enough=0.6
    )
    assert torch.allclose(found, plain_examples(net, x, y, norm, size), atol=1e-12)
    assert torch.equal(said, net(x).argmax(1))
    assert not (target == y).any()
    assert float((found - x).flatten(1).norm(dim=1).max()) <= norm + 1e-9


def test_one_step_of_the_formula(net: nn.Module) -> None:
    """One epoch on one batch: the loss, and the weights that SGD gives the plug, nothing else."""
    data = given(6)
    x, y = data.train.images, data.train.labels
    result = NPD(warm_epochs=0, epochs=1, weight_decay=0, weights=(0.9, 0.5, 0.6, 0.7)).repair(
        net, data, Rng(0)
    )
    with Rng(1).scope("tiny"):
        plain = Tiny().double()
    plain.load_state_dict(net.state_dict())
    plug = add(plain.eval(), "plug", "conv1")
    moved = plain_examples(plain, x, y, 3.0, 0.1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        p, q = plain(x[i : i + 1]).softmax(1)[0], plain(moved[i : i + 1]).softmax(1)[0]
        wrong = [k for k in range(3) if k != int(y[i])]
        t, s = (
            max(wrong, key=lambda k: float(p.detach()[k])),
            max(wrong, key=lambda k: float(q.detach()[k])),
        )
        said = int(p.argmax())
        total = total - (0.9 * p[y[i]].log() + 0.5 * q[said].log()) / 6
        total = total - (0.6 * (1 - q[s]).log() + 0.7 * (1 - q[t]).log()) / 6
    (gradient,) = torch.autograd.grad(total, plug.conv.weight)
    assert result.history[-1]["loss"] == pytest.approx(float(total.detach()), rel=1e-6)
    trained = result.model.conv1
    assert torch.allclose(trained.conv.weight, plug.conv.weight - 0.01 * gradient, atol=1e-10)
    before, after = net.state_dict(), result.model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name.replace("conv1.", "conv1.inner.")], value)
    assert result.edits == (Edit("plug", "conv1", None, 1),)
    assert additions(result.model) == [("plug", "conv1")]


def test_its_batch_norm_follows_images_in_the_warm_up_alone(net: nn.Module) -> None:
    warm = NPD(warm_epochs=2, epochs=0).repair(net, given(6), Rng(0)).model.conv1.norm
    cold = NPD(warm_epochs=0, epochs=2).repair(net, given(6), Rng(0)).model.conv1.norm
    assert int(warm.num_batches_tracked) == 2
    assert int(cold.num_batches_tracked) == 0
    assert torch.equal(cold.running_mean, torch.zeros_like(cold.running_mean))


def test_without_batch_norms_it_is_the_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(32, 3))
    assert late_layer(model, pictures(1).float(), "NPD") == "1"


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv9", "expected a layer of the model, got 'conv9'. Did you mean 'conv"),
        ("linear", "expected a layer that can take a plug: a convolution or a batch norm"),
        ("idle", "expected a layer that takes part in the forward pass, got 'idle'"),
    ],
)
def test_layers_that_cannot_be_plugged(net: nn.Module, layer: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        NPD(layer=layer).repair(net, given(6), Rng(0))


def test_a_network_whose_only_convolution_sees_the_image() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 3)).double()
    with pytest.raises(ModelError, match="convolutions after its first, one of which NPD stands"):
        NPD().repair(model, given(6), Rng(0))
    named = NPD(layer="0", epochs=1).repair(model, given(6), Rng(0))
    assert additions(named.model) == [("plug", "0")]


def test_a_network_that_has_a_plug_already(net: nn.Module) -> None:
    with pytest.raises(ModelError, match="a layer to which nothing was added yet"):
        NPD().repair(NPD(epochs=0).repair(net, given(6), Rng(0)).model, given(6), Rng(0))


def test_a_single_image(net: nn.Module) -> None:
    with pytest.raises(DataError, match="expected at least 2 images, got 1"):
        NPD().repair(net, given(1), Rng(0))


def test_a_loss_that_is_not_finite_ends_it(net: nn.Module) -> None:
    result = NPD(warm_rate=1e300).repair(net, given(6), Rng(0))
    assert any("diverged" in note for note in result.notes)
    assert {row["stage"] for row in result.history} == {"warm"}
    assert all(p.isfinite().all() for p in result.model.parameters())
