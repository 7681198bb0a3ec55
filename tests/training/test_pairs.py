"""Clean images and their triggered versions: contents, weights and losses, written out plainly."""

import math

import pytest
import torch
from torch import nn

from excise.testing import nothing_global_changes
from excise.training import Paired, logits_of
from excise.triggers import Blend, Patch
from excise.types import LabelledImages, round_to_8_bits

pytestmark = pytest.mark.fast

PATCH = Patch(torch.ones(3, 2, 2), torch.ones(2, 2, dtype=torch.bool), 0, 0)
BLEND = Blend(torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)), 0.3)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 3, 6, 5), generator=generator, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(7) % 4, ("a", "b", "c", "d"))


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.eval()


def cross_entropy(logits, label):
    """−log softmax of the label, with the standard library alone."""
    values = [float(v) for v in logits]
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values)) - values[int(label)]


def test_what_is_paired(data):
    paired = Paired.of(data, [PATCH, BLEND])
    assert len(paired) == 7
    assert torch.equal(paired.clean, data.images / 255)
    assert torch.equal(paired.labels, data.labels)
    assert len(paired.triggered) == 2
    for version, trigger in zip(paired.triggered, (PATCH, BLEND), strict=True):
        assert torch.equal(version, round_to_8_bits(trigger(data.floats())))
        assert not version.requires_grad


def test_pairing_needs_no_gradient_and_changes_nothing(data):
    before = data.fingerprint()
    scale = torch.ones((), requires_grad=True)
    with nothing_global_changes():
        paired = Paired.of(data, [lambda images: images * scale])
    assert not paired.triggered[0].requires_grad
    assert data.fingerprint() == before


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_batches_hold_every_pair_once_with_shares_that_add_up(data, size):
    paired = Paired.of(data, [PATCH, BLEND])
    batches = list(paired.triggered_batches(size))
    images = torch.cat([images for images, _, _ in batches])
    assert torch.equal(images, torch.cat(list(paired.triggered)))
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), data.labels.repeat(2))
    assert all(share == len(labels) / 14 for _, labels, share in batches)
    assert sum(share for _, _, share in batches) == pytest.approx(1)


@pytest.mark.parametrize("triggers", [[PATCH], [PATCH, BLEND], [PATCH, BLEND, BLEND]])
def test_clean_images_weigh_one_and_all_triggered_versions_one_together(data, triggers):
    paired = Paired.of(data, triggers)
    index = torch.tensor([5, 0, 2])
    (clean, labels, weight), *versions = paired.losses(index)
    assert torch.equal(clean, paired.clean[index])
    assert labels.tolist() == data.labels[index].tolist()
    assert weight == 1
    assert len(versions) == len(triggers)
    assert sum(w for _, _, w in versions) == pytest.approx(1)
    for (images, names, _), version in zip(versions, paired.triggered, strict=True):
        assert torch.equal(images, version[index])
        assert torch.equal(names, labels)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_losses_against_a_plain_loop(data, model, size):
    paired = Paired.of(data, [PATCH, BLEND])
    with torch.no_grad():
        clean = [model(image[None])[0] for image in paired.clean]
        triggered = [[model(image[None])[0] for image in v] for v in paired.triggered]
    labels = data.labels.tolist()
    right = sum(int(z.argmax()) == y for z, y in zip(clean, labels, strict=True))
    clean_loss = sum(map(cross_entropy, clean, labels)) / 7
    unlearning = sum(cross_entropy(z, y) for v in triggered for z, y in zip(v, labels, strict=True))

    assert paired.clean_loss(model, size) == pytest.approx(clean_loss, rel=1e-5)
    correct, loss = paired.correct_and_unlearning_loss(model, size)
    assert correct == right
    assert loss == pytest.approx(unlearning / 14, rel=1e-5)


def test_the_unlearning_loss_asks_for_the_true_label(data):
    """A model that says "b" of everything: only images of class b are read right."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(90, 4))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 10.0, 0.0, 0.0]))
    correct, loss = Paired.of(data, [PATCH]).correct_and_unlearning_loss(model, 3)
    rest = math.log(3 + math.exp(10))
    assert correct == 2
    assert loss == pytest.approx((2 * (rest - 10) + 5 * rest) / 7, rel=1e-5)


def test_logits_come_in_order_without_gradients_in_float32(data, model):
    images = data.floats()
    whole = logits_of(model, images, 100)
    assert whole.shape == (7, 4)
    assert not whole.requires_grad
    torch.testing.assert_close(logits_of(model, images, 2), whole)
    doubled = logits_of(model.double(), images.double(), 3)
    assert doubled.dtype == torch.float32
    torch.testing.assert_close(doubled, whole)
