"""FT-SAM against hand-worked values and a slow plain restatement."""

import copy
import math

import pytest
import torch
from tests.reference.tuning import PlainSGD, half_cosine, pictures, same, tiny

from excise.defenses import FTSAM, FineTuning
from excise.defenses.ft_sam import smoothed_cross_entropy
from excise.errors import SpecError
from excise.registry import build
from excise.seeding import Rng
from excise.testing import differences

pytestmark = pytest.mark.fast


def test_hand_worked_smoothing():
    """Ten classes, s = 0.1: 0.9 for the true one and 0.1 / 9 for each other."""
    logits = torch.zeros(1, 10)
    logits[0, 2] = math.log(11)  # p = 11/20 there and 1/20 elsewhere
    loss = smoothed_cross_entropy(logits, torch.tensor([2]), 0.1)
    assert float(loss) == pytest.approx(-0.9 * math.log(0.55) - 0.1 * math.log(0.05), rel=1e-5)
    assert float(smoothed_cross_entropy(logits, torch.tensor([2]), 0.0)) == pytest.approx(
        -math.log(0.55), rel=1e-5
    )


def smoothed(logits, labels, s):
    total = 0.0
    for row, label in zip(logits.log_softmax(1), labels.tolist(), strict=True):
        for k, log in enumerate(row):
            total = total - log * (1 - s if k == label else s / (len(row) - 1))
    return total / len(logits)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_smoothing_against_a_plain_restatement(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.arange(5) % classes
    for s in (0.0, 0.1, 0.5):
        torch.testing.assert_close(
            smoothed_cross_entropy(logits, labels, s), smoothed(logits, labels, s)
        )


@pytest.mark.parametrize("adaptive", [True, False])
def test_against_a_plain_restatement(adaptive):
    model, data = tiny(), pictures()
    images, labels = data.train.images.double(), data.train.labels
    fields = {"epochs": 4, "learning_rate": 0.2, "rho": 0.5, "adaptive": adaptive}
    result = FTSAM(**fields).repair(model, data, Rng(0))

    plain = copy.deepcopy(model).train()
    sgd = PlainSGD(plain, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        loss = smoothed(plain(images), labels, 0.1)
        g = torch.autograd.grad(loss, sgd.parameters)
        kept = copy.deepcopy(plain.state_dict())
        with torch.no_grad():
            size = [p.abs() if adaptive else torch.ones_like(p) for p in sgd.parameters]
            norm = sum((t * d).square().sum() for t, d in zip(size, g, strict=True)).sqrt()
            for p, t, d in zip(sgd.parameters, size, g, strict=True):
                p += 0.5 * t * t * d / norm
        climbed = torch.autograd.grad(smoothed(plain(images), labels, 0.1), sgd.parameters)
        plain.load_state_dict(kept)  # the statistics too: they saw the first pass alone
        sgd.step(climbed, half_cosine(0.2, epoch, 4))
    same(result.model, plain)


def test_without_climbing_it_is_fine_tuning():
    model, data = tiny(), pictures()
    sam = FTSAM(rho=0, label_smoothing=0, epochs=3).repair(model, data, Rng(0)).model
    assert differences(sam, FineTuning(epochs=3).repair(model, data, Rng(0)).model) == []


def test_a_rate_of_zero_leaves_the_weights_bit_for_bit():
    model = tiny()
    tuned = FTSAM(learning_rate=0, epochs=2, rho=30).repair(model, pictures(), Rng(0)).model
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tuned.get_parameter(name))


def test_it_stops_where_it_diverges():
    result = FTSAM(rho=1e200, epochs=9).repair(tiny(), pictures(), Rng(0))
    assert len(result.history) < 9
    assert result.notes[0].startswith("Stage tune diverged in epoch")
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_wrong_fields():
    with pytest.raises(SpecError, match="label_smoothing of ft-sam to be less than or"):
        build("defense", "ft-sam", {"label_smoothing": 0.9})
