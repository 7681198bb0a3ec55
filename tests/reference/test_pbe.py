"""PBE against hand-worked values and a slow plain restatement."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import PlainSGD, pictures, same, tiny

from excise.defenses import PBE, pbe
from excise.errors import SpecError
from excise.registry import build
from excise.seeding import Rng

pytestmark = pytest.mark.fast


def test_adversarial_images_stay_near_and_are_images(monkeypatch):
    """‖δ‖∞ ≤ ε and pixels in [0, 1], for every image it trains on."""
    search, made = pbe.pgd, []

    def watched(model, images, labels, **fields):
        assert {module.training for module in model.modules()} == {True}
        moved = search(model, images, labels, **fields)
        made.append((images, moved, fields))
        return moved

    monkeypatch.setattr(pbe, "pgd", watched)
    PBE(rounds=3, epsilon=0.3).repair(tiny(), pictures(), Rng(0))
    assert len(made) == 3  # one batch in every other pass
    for images, moved, fields in made:
        assert (moved - images).abs().max() <= 0.3 + 1e-9
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert not torch.equal(images, moved)
        assert fields == {"epsilon": 0.3, "step_size": pytest.approx(0.06), "steps": 7}


def sign_steps(model, images, labels, epsilon, steps):
    """One image at a time, in eval mode, by α = ε/5 from the image itself."""
    model.eval()
    found = []
    for image, label in zip(images, labels, strict=True):
        x = image[None].clone()
        for _ in range(steps):
            x.requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(model(x), label[None]), x)
            x = x.detach() + epsilon / 5 * g.sign()
            x = torch.minimum(torch.maximum(x, image[None] - epsilon), image[None] + epsilon)
            x = x.clamp(0, 1)
        found.append(x[0])
    model.train()
    return torch.stack(found)


def test_against_a_plain_restatement():
    model, data = tiny(), pictures()
    images, labels = data.train.images.double(), data.train.labels
    fields = {"rounds": 2, "epsilon": 0.1, "steps": 3, "learning_rate": 0.05}
    result = PBE(**fields).repair(model, data, Rng(0))

    plain = copy.deepcopy(model).train()
    sgd = PlainSGD(plain, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(2):
        for adversarial in (True, False):
            sgd.restart()
            given = sign_steps(plain, images, labels, 0.1, 3) if adversarial else images
            loss = F.cross_entropy(plain(given), labels)
            sgd.step(torch.autograd.grad(loss, sgd.parameters), 0.05)
            losses.append(loss.item())
    same(result.model, plain)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, rel=1e-6)


def test_momentum_lasts_a_pass_and_no_longer():
    """Two batches a pass: the second step has the first one's velocity, the third has none."""
    model, data = tiny(), pictures(8)
    fields = {"rounds": 1, "steps": 0, "weight_decay": 0, "batch_size": 4, "learning_rate": 1e-3}
    with_momentum, without = (
        PBE(momentum=m, **fields).repair(model, data, Rng(0)).model for m in (0.9, 0.0)
    )
    assert not torch.equal(with_momentum.head.weight, without.head.weight)
    single = fields | {"batch_size": 8}
    with_momentum, without = (
        PBE(momentum=m, **single).repair(model, data, Rng(0)).model for m in (0.9, 0.0)
    )
    torch.testing.assert_close(with_momentum.head.weight, without.head.weight, rtol=0, atol=0)


def test_it_stops_where_it_diverges():
    result = PBE(learning_rate=1e200).repair(tiny(), pictures(), Rng(0))
    assert len(result.history) < 40
    assert result.notes[0].startswith("Stage alternate diverged in epoch")
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_wrong_fields():
    with pytest.raises(SpecError, match="epsilon of pbe to be less than or equal to 1"):
        build("defense", "pbe", {"epsilon": 8})
