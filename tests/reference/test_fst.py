"""FST against hand-worked values and a slow plain restatement."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import PlainSGD, half_cosine, pictures, same, tiny
from torch import nn

from excise.defenses import FST
from excise.defenses.fst import renew
from excise.errors import ModelError, SpecError
from excise.registry import build
from excise.seeding import Rng
from excise.testing import Snapshot

pytestmark = pytest.mark.fast


def test_the_norm_is_kept_after_every_step():
    """‖W‖ = ‖W₀‖; looked at after every epoch of one step, from inside."""
    model, data = tiny(), pictures()
    for epochs in (1, 2, 5):
        shifted = FST(epochs=epochs, learning_rate=0.5).repair(model, data, Rng(0)).model
        torch.testing.assert_close(
            shifted.head.weight.norm(), model.head.weight.norm(), rtol=1e-12, atol=0
        )


def test_hand_worked_renewal():
    """d = 4: everything within ½, of either sign, and not what it was."""
    head = nn.Linear(4, 250)
    with torch.no_grad():
        head.weight.fill_(9)
        head.bias.fill_(9)
    renew(head, torch.Generator().manual_seed(0))
    for tensor in (head.weight, head.bias):
        assert tensor.abs().max() <= 0.5
        assert tensor.min() < -0.45
        assert tensor.max() > 0.45
    renew(nn.Linear(4, 2, bias=False), torch.Generator().manual_seed(0))


def test_against_a_plain_restatement():
    model, data = tiny(), pictures()
    fields = {"epochs": 5, "learning_rate": 0.3, "shift": 0.7}
    result = FST(**fields).repair(model, data, Rng(4))

    plain = copy.deepcopy(model).train()
    old = [row.tolist() for row in model.head.weight.detach()]
    # What it starts from is random: it is drawn again here.
    renew(plain.head, Rng(4).torch("head"))
    sgd = PlainSGD(plain, momentum=0.9)
    losses = []
    for epoch in range(5):
        loss = F.cross_entropy(plain(data.train.images.double()), data.train.labels)
        for now, was in zip(plain.head.weight, old, strict=True):
            for a, b in zip(now, was, strict=True):
                loss = loss + 0.7 * a * b
        sgd.step(torch.autograd.grad(loss, sgd.parameters), half_cosine(0.3, epoch, 5))
        with torch.no_grad():
            square = sum(a * a for row in plain.head.weight.tolist() for a in row)
            plain.head.weight *= (sum(b * b for row in old for b in row) / square) ** 0.5
        losses.append(loss.item())
    same(result.model, plain)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-6)


def test_it_turns_away_from_the_old_weights():
    model, data = tiny(), pictures()

    def cosine(shift):
        shifted = FST(epochs=60, learning_rate=0.1, shift=shift).repair(model, data, Rng(0)).model
        old, new = (net.head.weight.detach().flatten() for net in (model, shifted))
        return float(F.cosine_similarity(old, new, dim=0))

    assert cosine(5.0) < -0.9
    assert cosine(5.0) < cosine(0.0)


def test_a_network_without_a_linear_head_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 3, 7), nn.Flatten())
    snapshot = Snapshot(model)
    with pytest.raises(ModelError, match="expected a network whose last step is a linear layer"):
        FST().repair(model, pictures(), Rng(0))
    assert snapshot.changes() == []


def test_it_stops_where_it_diverges():
    result = FST(shift=1e300, learning_rate=1e200).repair(tiny(), pictures(), Rng(0))
    assert result.notes[0].startswith("Stage shift diverged in epoch")
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_wrong_fields():
    with pytest.raises(SpecError, match="shift of fst to be greater than or equal to 0"):
        build("defense", "fst", {"shift": -1})
