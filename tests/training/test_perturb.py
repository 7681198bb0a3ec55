"""Adversarial perturbations: what they reach, where they stay, and what they leave alone."""

import pytest
import torch
from torch import nn

from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Snapshot
from excise.training.perturb import deepfool, pgd

pytestmark = pytest.mark.fast


@pytest.fixture
def network():
    """A tiny network in the middle of its training, with a dropout."""
    body = build_model(
        "excise:preactresnet18,width=2", classes=4, in_channels=1, input_size=(8, 8), rng=Rng(0)
    )
    return nn.Sequential(body, nn.Dropout(0.5)).train()


@pytest.fixture
def curved():
    """A network without corners, whose gradients point somewhere everywhere."""
    with Rng(4).scope("weights"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))


@pytest.fixture
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
STEPS = {"epsilon": 0.1, "step_size": 0.03, "steps": 5}


def loss(network, images):
    network.eval()
    with torch.no_grad():
        return nn.functional.cross_entropy(network(images), LABELS).item()


def test_pgd_raises_the_loss_and_stays_in_the_ball(network, images):
    moved = pgd(network, images, LABELS, **STEPS)
    assert moved.shape == images.shape
    assert not moved.requires_grad
    assert 0.09 < (moved - images).abs().max() <= 0.1 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    towards = pgd(network, images, LABELS, **STEPS, targeted=True)
    assert loss(network, towards) < loss(network, images) < loss(network, moved)


@pytest.mark.parametrize("attack", [
    lambda network, images: pgd(network, images, LABELS, **STEPS),
    lambda network, images: deepfool(network, images, 1, max_steps=3),
])  # fmt: skip
def test_the_network_comes_back_as_it_was(network, images, attack):
    """Parameters get no gradient, batch norm sees nothing, every flag stays."""
    network[0].eval()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    snapshot, given = Snapshot(network), images.clone()
    with torch.no_grad():
        attack(network, images)
        assert not torch.is_grad_enabled()
    assert snapshot.changes() == []
    assert torch.equal(images, given)


def test_pgd_moves_each_image_for_itself(network, images):
    together = pgd(network, images, LABELS, **STEPS)
    alone = [pgd(network, images[k : k + 1], LABELS[k : k + 1], **STEPS) for k in range(6)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_pgd_starts_where_the_generator_says(network, images):
    def start(seed):
        generator = torch.Generator().manual_seed(seed)
        return pgd(network, images, LABELS, epsilon=0.1, step_size=0.1, steps=0,
                   generator=generator)  # fmt: skip

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    moved = start(1) - images
    assert 0.08 < moved.abs().max() <= 0.1 + 1e-6
    assert start(1).min() >= 0
    assert start(1).max() <= 1
    assert torch.equal(pgd(network, images, LABELS, epsilon=0.1, step_size=0.1, steps=0), images)


def test_deepfool_arrives_with_little(curved, images):
    perturbation, reached = deepfool(curved, images, 1)
    with torch.no_grad():
        called, before = curved(images + perturbation).argmax(1), curved(images).argmax(1)
        half = curved(images + perturbation / 2).argmax(1)
    assert reached.all()
    assert (called == 1).all()
    # An image that is there already is left alone; for the others half the way is not enough.
    assert 0 < (before == 1).sum() < 6
    assert (perturbation[before == 1] == 0).all()
    assert (half[before != 1] != 1).all()


def test_deepfool_images_do_not_wait_for_each_other(curved, images):
    together, reached = deepfool(curved, images, 2)
    assert reached.all()
    alone = [deepfool(curved, images[k : k + 1], 2)[0] for k in range(6)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_deepfool_gives_up():
    """Where nothing leads to the target it stops, and says so, without a value that is none."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([1.0, 0.0])
    perturbation, reached = deepfool(network, torch.rand(3, 1, 2, 2), 1, max_steps=4)
    assert reached.tolist() == [False] * 3
    assert (perturbation == 0).all()
