"""Input-aware: masks are learned first, the pattern beside the network, and it all takes."""

import pytest
import torch

from excise.attacks import InputAware
from excise.attacks.patterns import PatternLearner, trained_mask
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.errors import DataError, SpecError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Interruption, interrupt_at
from excise.training import Recipe
from excise.triggers.input_aware import sharpened
from excise.triggers.networks import Pyramid, rebuilt
from excise.types import AllToOne


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=400).train


def network(digits, width=2):
    return build_model(
        f"excise:preactresnet18,width={width}", classes=digits.classes, in_channels=1,
        input_size=(8, 8), rng=Rng(0),
    )  # fmt: skip


def workshop(digits, attack, **options):
    return Workshop(
        network(digits), digits, Recipe(epochs=2, batch_size=32), Rng(0), str(attack), **options
    )


def test_masks_become_sparse_and_stay_different(digits):
    attack = InputAware(width=4, mask_epochs=6)
    rows = []
    weights = trained_mask(attack, workshop(digits, attack, on_round=rows.append))
    assert [row["epoch"] for row in rows] == list(range(1, 7))
    assert {row["stage"] for row in rows} == {"mask"}
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["covered"] < 0.7 * rows[0]["covered"]
    masks = sharpened(rebuilt(Pyramid, weights)(digits.floats()))
    assert masks.std(0).max() > 0.1


def test_an_interrupted_mask_training_goes_on_at_its_epoch(digits, tmp_path):
    attack = InputAware(width=2, mask_epochs=4)
    undisturbed = trained_mask(attack, workshop(digits, attack))
    with pytest.raises(Interruption):
        trained_mask(
            attack, workshop(digits, attack, checkpoints=tmp_path, on_round=interrupt_at(2))
        )
    rows = []
    resumed = trained_mask(
        attack, workshop(digits, attack, checkpoints=tmp_path, on_round=rows.append)
    )
    assert [row["epoch"] for row in rows] == [3, 4]
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)
    other = InputAware(width=2, mask_epochs=5)
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        trained_mask(other, workshop(digits, other, checkpoints=tmp_path))


def test_another_seed_learns_another_mask(digits):
    attack = InputAware(width=2, mask_epochs=1)
    one, other = (
        trained_mask(attack, Workshop(network(digits), digits, Recipe(), Rng(seed), str(attack)))
        for seed in (0, 1)
    )
    assert not torch.equal(one["middle.0.weight"], other["middle.0.weight"])


def test_more_triggers_than_images_are_refused_before_the_long_work(digits):
    attack = InputAware(poison_ratio=0.6, cross_ratio=0.5)
    with pytest.raises(
        SpecError, match=r"together at most all images, got 0\.6 and 0\.5 of them\. Choose a sm"
    ):
        attack.learn(workshop(digits, attack, on_round=interrupt_at(1)), AllToOne(0))


def test_the_target_class_can_be_left_out(digits):
    for exclude in (False, True):
        attack = InputAware(
            width=2, mask_epochs=1, poison_ratio=0.5, cross_ratio=0.2, exclude_target=exclude
        )
        place = workshop(digits, attack)
        learner = PatternLearner(attack, place, attack.learn(place, AllToOne(3)))
        part = digits.subset(torch.arange(60))
        learner.network = lambda images: 1 - images
        learner.mask = lambda images: torch.ones(len(images), 1, 8, 8)
        images, labels, _ = learner.batch(
            part.images, part.labels, seen=0, augment=torch.clone, generator=torch.Generator()
        )
        assert (labels[:30] == 3).all()
        truth = {
            image.numpy().tobytes(): int(y)
            for image, y in zip(part.floats(), part.labels, strict=True)
        }
        own = [
            truth[(1 - image).mul(255).round().div(255).numpy().tobytes()] for image in images[:30]
        ]
        assert (3 in own) == (not exclude)
        # Labels go with their images.
        clean = [truth[image.numpy().tobytes()] for image in images[42:]]
        assert clean == labels[42:].tolist()


def test_one_image_is_enough_for_batch_norm(digits):
    attack = InputAware(width=2, mask_epochs=1, poison_ratio=0.05, cross_ratio=0.0)
    place = workshop(digits, attack)
    learner = PatternLearner(attack, place, attack.learn(place, AllToOne(3)))
    part = digits.subset(torch.arange(20))
    images, _, extra = learner.batch(
        part.images, part.labels, seen=0, augment=torch.clone, generator=torch.Generator()
    )
    assert extra is None
    images.sum().backward()
    learner.step(0.5)
    assert int((images != part.floats()).flatten(1).any(1).sum()) == 1


def test_it_reports_how_cross_triggers_fare(digits):
    attack = InputAware(width=2, mask_epochs=1, target=3)
    rows = []
    victim = attack.plant(network(digits), digits, Recipe(epochs=1), Rng(0), on_round=rows.append)
    assert [row["stage"] for row in rows] == ["mask", "fit", "cross triggers"]
    assert 0 <= rows[-1]["accuracy"] <= 1
    assert victim.poison_index is None


@pytest.mark.slow
def test_it_takes():
    """Fifty epochs on digits; without cross triggers, with which it takes far longer."""
    data = load_data("digits", limit=800).train
    attack = InputAware(width=8, mask_epochs=10, target=3, cross_ratio=0.0)
    recipe = Recipe(epochs=50, batch_size=64, learning_rate=0.1)
    victim = attack.plant(network(data, width=4), data, recipe, Rng(0))
    others = data.floats()[data.labels != 3]
    with torch.no_grad():
        before, after = (
            float((victim.model(images).argmax(1) == 3).float().mean())
            for images in (others, victim.backdoor.trigger(others))
        )
    assert before < 0.05
    assert after > 0.5
