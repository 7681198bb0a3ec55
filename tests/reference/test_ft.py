"""Fine-tuning against a hand-worked case and a slow plain restatement."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import PlainSGD, half_cosine, pictures, same, tiny

from excise.defenses import FineTuning
from excise.errors import SpecError
from excise.registry import build
from excise.seeding import Rng
from excise.testing import differences
from excise.types import DefenderData

pytestmark = pytest.mark.fast


def test_a_rate_of_zero_leaves_the_weights():
    model, data = tiny(), pictures()
    tuned = FineTuning(learning_rate=0, epochs=3).repair(model, data, Rng(0)).model
    moved = [name for name in differences(model, tuned) if "running" not in name]
    assert [name for name in moved if "num_batches" not in name] == []


def test_against_a_plain_restatement():
    model, data = tiny(), pictures()
    result = FineTuning(epochs=5, learning_rate=0.3).repair(model, data, Rng(0))
    plain = copy.deepcopy(model).train()
    sgd = PlainSGD(plain, momentum=0.9, weight_decay=5e-4)
    losses = []
    for epoch in range(5):
        logits = plain(data.train.images.double())
        loss = F.cross_entropy(logits, data.train.labels)
        sgd.step(torch.autograd.grad(loss, sgd.parameters), half_cosine(0.3, epoch, 5))
        losses.append(loss.item())
    same(result.model, plain)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-6)


def test_it_uses_every_image_the_defender_owns():
    """Validation images too: it decides nothing by them."""
    model, data = tiny(), pictures(8)
    halves = (data.train.subset(torch.arange(i, i + 4)) for i in (0, 4))
    whole, split = (
        FineTuning(epochs=2).repair(model, given, Rng(0)).model
        for given in (data, DefenderData(*halves, "here"))
    )
    assert differences(whole, split) == []


def test_it_stops_where_it_diverges():
    result = FineTuning(learning_rate=1e200, epochs=9).repair(tiny(), pictures(), Rng(0))
    assert len(result.history) < 9
    assert result.notes[0].startswith("Stage tune diverged in epoch")
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_wrong_fields():
    with pytest.raises(SpecError, match="batch_size of ft to be greater than or equal to 2"):
        build("defense", "ft", {"batch_size": 1})
