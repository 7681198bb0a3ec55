"""Label-consistent: what poisoned images carry, at training and at test time; the surrogate."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from excise.attacks import LabelConsistent
from excise.attacks.hardening import Hardened, _Adversary, adversarially_trained
from excise.attacks.label_consistent import corners
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.errors import TriggerError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Interruption, Snapshot, differences, interrupt_at
from excise.training import Recipe
from excise.training.perturb import pgd
from excise.types import AllToOne, LabelledImages, as_floats, ignore_round

pytestmark = pytest.mark.fast

RECIPE = Recipe(epochs=4, batch_size=32, learning_rate=0.1)
AS_IT_IS = {"adversarial_epochs": 0}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=200).train


@pytest.fixture
def linear():
    with Rng(0).scope("weights"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def workshop_of(network, data, checkpoints=None, on_round=ignore_round):
    return Workshop(network, data, RECIPE, Rng(0), "l", network, checkpoints, on_round)


def test_training_images_are_hardened_and_cornered(digits, linear):
    """Inside ε, against the target's label, under their own label; the rest of the set stays."""
    attack = LabelConsistent(target=3, poison_ratio=0.5, **AS_IT_IS)
    workshop = workshop_of(linear, digits)
    backdoor = attack.learn(workshop, AllToOne(3))
    poisoned = attack.poison(digits, backdoor, Rng(0))
    assert torch.equal(poisoned.data.labels, digits.labels)
    assert (digits.labels[poisoned.index] == 3).all()
    rest = torch.ones(len(digits), dtype=torch.bool)
    rest[poisoned.index] = False
    assert torch.equal(poisoned.data.images[rest], digits.images[rest])

    before = as_floats(digits.images[poisoned.index])
    after = as_floats(poisoned.data.images[poisoned.index])
    corner = corners((1, 8, 8), 1.0) != 0
    assert (after[:, corner] == (corners((1, 8, 8), 1.0)[corner] > 0)).all()
    moved = (after - before)[:, ~corner]
    assert moved.abs().max() == pytest.approx(8 / 255, abs=1e-6)
    # Where there is room every value of a linear network's image goes to the end of the ball.
    assert (moved.abs() > 7.5 / 255).float().mean() > 0.3
    labels = torch.full((len(before),), 3)
    hardened = before.clone()
    hardened[:, ~corner] = after[:, ~corner]
    with torch.no_grad():
        harder, easier = (F.cross_entropy(linear(x), labels) for x in (hardened, before))
    assert harder > easier


def test_at_test_time_there_are_the_corners_alone(digits, linear):
    backdoor = LabelConsistent(**AS_IT_IS).learn(workshop_of(linear, digits), AllToOne(3))
    images = digits.floats()
    expected = (images + corners((1, 8, 8), 1.0)).clamp(0, 1)
    assert torch.equal(backdoor.trigger(images), expected)
    again = LabelConsistent(amplitude=0.25, steps=0, **AS_IT_IS)
    reduced = again.learn(workshop_of(linear, digits), AllToOne(3))
    expected = (images + corners((1, 8, 8), 0.25)).clamp(0, 1)
    assert torch.equal(reduced.trigger(images), expected)
    assert torch.equal(reduced.train_trigger(images), expected)


def test_hardening_is_done_once(digits, linear, tmp_path, monkeypatch):
    """Batch after batch, each told of once; an interrupted planting goes on after the last."""
    monkeypatch.setattr("excise.attacks.hardening._BATCH", 8)
    images, corner = digits.floats()[:20], lambda given: given

    def hardened(checkpoints=None, on_round=ignore_round):
        workshop = workshop_of(linear, digits, checkpoints, on_round)
        return Hardened(workshop, linear, 3, 0.1, 0.05, 3, corner)(images)

    expected = hardened()
    rows = []
    with pytest.raises(Interruption):
        hardened(tmp_path, interrupt_at(2))
    assert torch.equal(hardened(tmp_path, rows.append), expected)
    assert rows == [{"stage": "hardening", "round": 20, "rounds": 20}]
    whole = pgd(linear, images, torch.full((20,), 3), epsilon=0.1, step_size=0.05, steps=3)
    assert torch.allclose(expected, whole, atol=1e-6)
    # Other images are not taken for those.
    other = Hardened(workshop_of(linear, digits, tmp_path), linear, 3, 0.1, 0.05, 3, corner)
    assert not torch.equal(other(1 - images), expected)
    assert other(images[:0]).shape == (0, 1, 8, 8)


def test_the_surrogate_becomes_robust(digits, linear):
    """Trained on, it loses less to PGD than the clean network; that one stays as it was."""
    rows = []
    workshop = workshop_of(linear, digits, on_round=rows.append)
    clean = adversarially_trained(workshop, linear, epsilon=0.0, steps=1, epochs=20)
    clean.eval()
    snapshot = Snapshot(clean)
    robust = adversarially_trained(workshop, clean, epsilon=0.2, steps=2, epochs=20)
    assert snapshot.changes() == []
    assert not any(parameter.requires_grad for parameter in robust.parameters())
    assert [row["epoch"] for row in rows] == 2 * list(range(1, 21))
    assert {row["stage"] for row in rows} == {"adversarial"}
    images, labels = digits.floats(), digits.labels

    def loss(network):
        moved = pgd(network, images, labels, epsilon=0.2, step_size=0.05, steps=10)
        return F.cross_entropy(network(moved), labels).item()

    assert loss(robust) < 0.93 * loss(clean)


def test_a_batch_of_adversarial_training(digits):
    """Augmented once, then moved inside ε against the network in eval mode; its flags stay."""
    network = build_model(
        "excise:preactresnet18,width=2", classes=10, in_channels=1, input_size=(8, 8), rng=Rng(0)
    ).train()
    snapshot = Snapshot(network)
    adversary = _Adversary(workshop_of(network, digits), network, 0.1, 0.125, 1)
    images, labels, extra = adversary.batch(
        digits.images[:16], digits.labels[:16], seen=0, augment=lambda given: 255 - given,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert extra is None
    assert torch.equal(labels, digits.labels[:16])
    moved = images - (1 - digits.floats()[:16])
    assert 0.09 < moved.abs().max() <= 0.1 + 1e-6
    assert snapshot.changes() == []


@pytest.mark.parametrize(("asked", "epochs"), [(0, 0), (2, 2), (None, 4)])
def test_how_long_the_surrogate_is_trained(digits, linear, asked, epochs):
    rows = []
    workshop = workshop_of(linear, digits, on_round=rows.append)
    backdoor = LabelConsistent(steps=0, adversarial_epochs=asked).learn(workshop, AllToOne(0))
    assert len(rows) == epochs
    assert bool(differences(backdoor.train_trigger.network, linear)) == (epochs > 0)


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 8, 5)])
def test_images_too_small_for_four_corners_are_refused(shape):
    tiny = LabelledImages(torch.zeros(4, *shape), torch.arange(4) % 2, ("a", "b"))
    with pytest.raises(
        TriggerError, match=r"images of at least 6 × 6 pixels, for four corners of 3 × 3, got \d ×"
    ):
        LabelConsistent().learn(workshop_of(nn.Flatten(), tiny), AllToOne(0))
