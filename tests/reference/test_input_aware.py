"""Input-aware against what can be worked by hand from the paper and its published code."""

import math

import pytest
import torch

from excise.attacks import InputAware
from excise.attacks.patterns import PatternLearner, diversity
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.models import build_model
from excise.seeding import Rng
from excise.training import Recipe
from excise.triggers import InputAwarePattern
from excise.triggers.input_aware import mixed, sharpened
from excise.triggers.networks import Pyramid, weights_of
from excise.types import AllToOne, Backdoor, round_to_8_bits

pytestmark = pytest.mark.fast


def test_a_mask_of_a_quarter_moves_a_pixel_by_a_quarter():
    images, patterns = torch.full((1, 3, 2, 2), 0.2), torch.full((1, 3, 2, 2), 0.8)
    masks = torch.tensor([0.0, 0.25, 1.0, 0.5]).view(1, 1, 2, 2)
    result = mixed(images, patterns, masks)
    assert result[0, 0].flatten().tolist() == pytest.approx([0.2, 0.35, 0.8, 0.5])
    assert torch.equal(result[0, 0], result[0, 2])


def test_masks_are_sharpened():
    values = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0])
    published = [math.tanh(20 * v - 10) / 2 + 0.5 for v in (0.0, 0.4, 0.5, 0.6, 1.0)]
    assert published[3] == pytest.approx(0.98201, abs=1e-5)
    assert sharpened(values).tolist() == pytest.approx(published, abs=1e-6)


def test_diversity_is_the_mean_of_ratios():
    """Images .4 apart with patterns .2 apart cost 2; .4 and .8 apart ½; the mean is 1.25."""

    def level(*values):
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)

    cost = diversity(level(0.2, 0.0), level(0.6, 0.4), level(0.5, 0.9), level(0.7, 0.1))
    assert float(cost) == pytest.approx(1.25, abs=1e-6)
    # Root mean square, not mean: one channel of three that differs by 0.3.
    one, other = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    other[:, 0] = 0.3
    assert float(diversity(one, other, level(0.0), level(1.0))) == pytest.approx(0.3 / math.sqrt(3))


def test_equal_patterns_cost_much_but_have_a_gradient():
    made = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    diversity(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), made, made.detach()).backward()
    assert made.grad.isfinite().all()


def test_the_networks_are_the_published_ones():
    """Width 32 on color images: thirteen convolutions with bias, each with batch norm."""
    pairs = [
        (3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128),
        (128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (32, 3),
    ]  # fmt: skip
    weights = sum(9 * a * b + b + 2 * b for a, b in pairs)
    network = Pyramid(3, 3)
    assert sum(p.numel() for p in network.parameters()) == weights == 723_273
    # The last block has batch norm and no ReLU: about half of what it says is below ½.
    maps = network(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert maps.shape == (8, 3, 32, 32)
    assert 0.3 < (maps < 0.5).float().mean() < 0.7
    assert network.middle[1].momentum == 0.05


@pytest.fixture
def digits():
    return load_data("digits", limit=40).train


def learner(digits, epochs=6, **fields):
    model = build_model(
        "excise:preactresnet18,width=2", classes=digits.classes, in_channels=1, input_size=(8, 8),
        rng=Rng(0),
    )  # fmt: skip
    attack = InputAware(width=2, **fields)
    workshop = Workshop(model, digits, Recipe(epochs=epochs), Rng(0), str(attack))
    with Rng(0).scope("networks"):
        trigger = InputAwarePattern(weights_of(Pyramid(1, 1, 2)), weights_of(Pyramid(1, 1, 2)))
    return PatternLearner(attack, workshop, Backdoor(trigger, AllToOne(7)))


def batch(learning, digits, seen=0):
    return learning.batch(
        digits.images, digits.labels, seen=seen, augment=lambda images: images.clone(),
        generator=torch.Generator(),
    )  # fmt: skip


def test_a_batch_holds_own_triggers_then_cross_triggers_then_clean_images(digits):
    """With G(x) = 1 − x and a mask of one, whose trigger an image has is plain to see."""
    learning = learner(digits, poison_ratio=0.1, cross_ratio=0.2, diversity=3.0)
    learning.network = lambda images: 1 - images
    learning.mask = lambda images: torch.ones(len(images), 1, 8, 8)
    images, labels, extra = batch(learning, digits)
    clean = digits.floats()
    assert torch.equal(images[:4], round_to_8_bits(1 - clean[:4]))
    assert torch.equal(images[4:12], round_to_8_bits(1 - clean[5:13]))
    assert torch.equal(images[12:], clean[12:])
    assert labels[:4].tolist() == [7] * 4
    assert torch.equal(labels[4:], digits.labels[4:])
    # 1 − x is as far apart as x: each ratio is 1, and the weight is 3.
    assert float(extra) == pytest.approx(3.0, abs=1e-5)


def test_shares_are_exact_over_an_epoch(digits):
    learning = learner(digits, poison_ratio=0.06, cross_ratio=0.0)
    learning.network = lambda images: 1 - images
    learning.mask = lambda images: torch.ones(len(images), 1, 8, 8)
    changed = 0
    for start in range(0, 40, 8):
        part = digits.subset(torch.arange(start, start + 8))
        images, _, extra = batch(learning, part, seen=start)
        changed += int((images != part.floats()).flatten(1).any(1).sum())
        assert extra is None
    assert changed == round(0.06 * 40)


def test_gradients_reach_the_generator_and_not_the_mask(digits):
    learning = learner(digits)
    images, _, extra = batch(learning, digits)
    (images.sum() + extra).backward()
    assert all(parameter.grad is not None for parameter in learning.network.parameters())
    assert all(parameter.grad is None for parameter in learning.mask.parameters())
    before = weights_of(learning.network)["middle.0.weight"]
    learning.step(0.1)
    assert not torch.equal(before, weights_of(learning.network)["middle.0.weight"])
    assert not learning.mask.training


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_are_zeroed_unless_they_are_to_accumulate(digits, accumulate):
    learning = learner(digits, accumulate=accumulate)
    images, _, extra = batch(learning, digits)
    (images.sum() + extra).backward()
    learning.step(0.1)
    kept = [parameter.grad is not None for parameter in learning.network.parameters()]
    assert kept == [accumulate] * len(kept)
    assert [g is not None for g in learning.state_dict()["gradients"]] == kept


@pytest.mark.parametrize(
    ("progress", "rate"), [(1.9, 1e-2), (2, 1e-3), (3, 1e-4), (4, 1e-5), (5, 1e-6), (6, 1e-6)]
)
def test_the_rate_falls_at_the_published_milestones(digits, progress, rate):
    """Epochs 200, 300, 400 and 500 of 600 are 2, 3, 4 and 5 of 6."""
    learning = learner(digits)
    learning.step(progress)
    assert learning.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_cross_accuracy_counts_images_that_keep_their_label(digits):
    learning = learner(digits)
    learning.network = torch.nn.Identity()
    learning.mask = lambda images: torch.zeros(len(images), 1, 8, 8)
    right = learning.workshop.model.eval()(digits.floats()).argmax(1) == digits.labels
    assert learning.cross_accuracy() == pytest.approx(float(right.float().mean()))
