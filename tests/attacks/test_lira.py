"""LIRA: the generator learns in the first stage, the network in both, and it takes."""

import copy

import pytest
import torch

from excise.attacks import Lira
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.models import build_model
from excise.seeding import Rng
from excise.testing.guards import Snapshot
from excise.training import Recipe
from excise.triggers import ResidualGenerator
from excise.types import AllToOne, round_to_8_bits


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=400).train


def network(digits, width=2):
    return build_model(
        f"excise:preactresnet18,width={width}", classes=digits.classes, in_channels=1,
        input_size=(8, 8), rng=Rng(0),
    )  # fmt: skip


def learner(digits, epochs=6, rule=None, **fields):
    attack = Lira(**({"width": 4, "epsilon": 0.1} | fields))
    workshop = Workshop(network(digits), digits, Recipe(epochs=epochs), Rng(0), str(attack))
    return attack.companion(workshop, attack.learn(workshop, rule or AllToOne(3)))


def batch(learning, digits, number=40, seen=0):
    part = digits.subset(torch.arange(number))
    return part, *learning.batch(
        part.images, part.labels, seen=seen, augment=torch.clone, generator=torch.Generator()
    )


def test_a_batch_holds_triggered_images_then_clean_ones(digits):
    learning = learner(digits, poison_ratio=0.3)
    trigger = learning.fixed
    part, images, labels, extra = batch(learning, digits)
    assert extra is None
    clean = part.floats()
    assert torch.equal(images[:12], round_to_8_bits(trigger(clean[:12])))
    assert not torch.equal(images[:12], clean[:12])
    assert torch.equal(images[12:], clean[12:])
    assert labels[:12].tolist() == [3] * 12
    assert torch.equal(labels[12:], part.labels[12:])


def test_shares_are_exact_over_an_epoch(digits):
    learning = learner(digits, poison_ratio=0.06)
    learning.epoch = learning.joint_epochs
    changed = 0
    for seen in range(0, 50, 10):
        part, images, _, _ = batch(learning, digits, 10, seen)
        changed += int((images != part.floats()).flatten(1).any(1).sum())
    assert changed == 3


def test_the_target_class_can_be_left_out(digits):
    for exclude in (False, True):
        learning = learner(digits, poison_ratio=0.5, exclude_target=exclude, joint_share=1e-9)
        learning.epoch = 1
        learning.fixed = lambda images: 1 - images
        part, images, labels, _ = batch(learning, digits)
        pairs = zip(part.floats(), part.labels.tolist(), strict=True)
        truth = {image.mul(255).round().byte().numpy().tobytes(): y for image, y in pairs}
        named = [
            truth[image.mul(255).round().byte().numpy().tobytes()]
            for image in torch.cat([1 - images[:20], images[20:]])
        ]
        assert (3 in named[:20]) == (not exclude)
        # Labels go with their images.
        assert named[20:] == labels[20:].tolist()


def test_the_generator_learns_and_leaves_the_network_alone(digits):
    learning = learner(digits, learning_rate=1e-2)
    model = learning.workshop.model.train()
    before, snapshot = learning.network.state_dict()["last.weight"].clone(), Snapshot(model)
    batch(learning, digits)
    assert snapshot.changes() == []
    assert not torch.equal(before, learning.network.state_dict()["last.weight"])


def test_the_generator_pulls_toward_the_target(digits):
    """Twenty steps against one network, which stays as it is: the target becomes likelier."""
    learning = learner(digits, learning_rate=1e-2, epsilon=1.0)
    model, images = learning.workshop.model.eval(), digits.floats()[:40]

    def likely():
        learning.step(learning.epoch + 1)
        with torch.no_grad():
            return float(model(learning.fixed(images)).softmax(1)[:, 3].mean())

    before = likely()
    learning.epoch = 0
    for _ in range(20):
        batch(learning, digits)
    assert likely() > before + 1e-3


@pytest.mark.parametrize(
    ("epochs", "share", "joint"), [(6, 1 / 6, 1), (300, 1 / 6, 50), (2, 1 / 6, 1), (3, 0.5, 2)]
)
def test_how_long_the_first_stage_is(digits, epochs, share, joint):
    assert learner(digits, epochs=epochs, joint_share=share).joint_epochs == joint


def test_the_network_sees_the_trigger_of_the_epoch_before(digits):
    learning = learner(digits, epochs=2, joint_share=0.5, learning_rate=1e-2)
    first = learning.fixed
    batch(learning, digits)
    learning.step(0.5)
    assert learning.fixed is first
    batch(learning, digits)
    learning.step(1.0)
    second = learning.fixed
    assert not torch.equal(second.weights["last.weight"], first.weights["last.weight"])
    # The second stage: nothing is learned any more.
    still = learning.network.state_dict()["last.weight"].clone()
    batch(learning, digits)
    learning.step(2.0)
    assert learning.fixed is second
    assert torch.equal(learning.network.state_dict()["last.weight"], still)


def test_a_state_holds_all_that_a_resumed_run_needs(digits):
    one, other = (learner(digits, joint_share=1, learning_rate=1e-2) for _ in range(2))
    batch(one, digits)
    one.step(1.0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learning in (one, other):
        batch(learning, digits)
        learning.step(2.0)
    shown = digits.floats()[:8]
    assert torch.equal(one.fixed(shown), other.fixed(shown))
    assert one.epoch == other.epoch == 2


def test_it_takes(digits):
    """Twelve epochs on digits, with an epsilon that such small images need."""
    attack = Lira(
        width=4, target=3, epsilon=0.1, poison_ratio=0.2, joint_share=0.5, learning_rate=1e-2
    )
    victim = attack.plant(
        network(digits, width=4), digits, Recipe(epochs=12, batch_size=32, learning_rate=0.05),
        Rng(0),
    )  # fmt: skip
    assert isinstance(victim.backdoor.trigger, ResidualGenerator)
    assert victim.poison_index is None
    others = digits.floats()[digits.labels != 3]
    with torch.no_grad():
        before, after = (
            float((victim.model(images).argmax(1) == 3).float().mean())
            for images in (others, victim.backdoor.trigger(others))
        )
    assert after > before + 0.3
