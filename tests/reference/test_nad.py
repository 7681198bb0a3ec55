"""NAD against hand-worked values and a slow plain restatement."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.reference.tuning import PlainSGD, pictures, same, tiny
from torch import nn

from excise.defenses import NAD
from excise.defenses.nad import attention
from excise.errors import ModelError, SpecError
from excise.registry import build
from excise.seeding import Rng
from excise.testing import Interruption, Snapshot, interrupt_at

pytestmark = pytest.mark.fast


def test_hand_worked_attention():
    """Channels (1, 2) and (−2, 0) at two pixels: Σ|F|² = (5, 4), over √41."""
    maps = torch.tensor([[[[1.0, 2.0]], [[-2.0, 0.0]]]])
    torch.testing.assert_close(attention(maps), torch.tensor([[[5.0, 4.0]]]) / 41**0.5)
    torch.testing.assert_close(attention(maps, 1.0), torch.tensor([[[3.0, 2.0]]]) / 13**0.5)


def test_the_scale_of_a_map_does_not_matter():
    maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for factor in (0.1, -7.0):
        torch.testing.assert_close(attention(factor * maps), attention(maps))


def test_a_map_of_one_pixel_says_one():
    """That is why such maps are left out: they distill nothing."""
    maps = torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(maps), torch.ones(3, 1, 1), rtol=0, atol=1e-4)


def test_a_dead_map_has_a_gradient():
    maps = torch.zeros(1, 2, 3, 3, requires_grad=True)
    attention(maps).sum().backward()
    assert maps.grad.isfinite().all()


def plain_attention(maps, p):
    """One image, one pixel, one channel at a time."""
    rows = []
    for image in maps:
        strength = [
            sum(image[c, i, j].abs() ** p for c in range(image.shape[0]))
            for i in range(image.shape[1])
            for j in range(image.shape[2])
        ]
        norm = sum(s * s for s in strength) ** 0.5
        rows.append(torch.stack([s / (norm + 1e-6) for s in strength]))
    return torch.stack(rows)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_attention_against_a_plain_restatement(p):
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(3, 4, 2, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(attention(maps, p).flatten(1), plain_attention(maps, p))


def forward(model, images):
    """Return the three maps of the tiny network before pooling, and its logits."""
    one = model.first(images)
    two = model.second(one)
    three = model.third(F.relu(two))
    return (one, two, three), model.head(F.relu(three).mean((2, 3)))


def test_against_a_plain_restatement():
    model, data = tiny(), pictures()
    images, labels = data.train.images.double(), data.train.labels
    fields = {"epochs": 4, "teacher_epochs": 3, "power": 2.0, "low_weight": 5.0,
              "middle_weight": 7.0, "high_weight": 11.0}  # fmt: skip
    result = NAD(**fields).repair(model, data, Rng(0))

    def rate(epoch):
        return 0.1 if epoch < 2 else 0.01

    teacher, student = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    sgd = PlainSGD(teacher, momentum=0.9, weight_decay=1e-4, nesterov=True)
    for epoch in range(3):
        loss = F.cross_entropy(teacher(images), labels)
        sgd.step(torch.autograd.grad(loss, sgd.parameters), rate(epoch))
    teacher.eval()
    sgd = PlainSGD(student, momentum=0.9, weight_decay=1e-4, nesterov=True)
    losses = []
    for epoch in range(4):
        theirs, _ = forward(teacher, images)
        ours, logits = forward(student, images)
        loss = F.cross_entropy(logits, labels)
        for beta, mine, other in zip((5.0, 7.0, 11.0), ours, theirs, strict=True):
            gap = plain_attention(mine, 2.0) - plain_attention(other.detach(), 2.0)
            loss = loss + beta * gap.square().mean()
        sgd.step(torch.autograd.grad(loss, sgd.parameters), rate(epoch))
        losses.append(loss.item())
    same(result.model, student)
    assert [row["stage"] for row in result.history] == ["teach"] * 3 + ["distill"] * 4
    assert [row["loss"] for row in result.history[3:]] == pytest.approx(losses, rel=1e-6)


def test_a_teacher_that_learned_nothing_has_nothing_to_say_at_first():
    """Identical networks without dropout or batch norm: the first distance is 0."""
    model, data = tiny(), pictures()
    model.first[1] = nn.Identity()
    for betas in (0.0, 1e6):
        fields = {"low_weight": betas, "middle_weight": betas, "high_weight": betas}
        first = NAD(epochs=1, teacher_epochs=0, **fields).repair(model, data, Rng(0)).history[0]
        loss = F.cross_entropy(model(data.train.images.double()), data.train.labels)
        assert first["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_two_resolutions_are_enough_and_one_pixel_is_not():
    two = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    assert NAD(epochs=1, teacher_epochs=1).repair(two, pictures(), Rng(0)).notes == ()
    one = nn.Sequential(nn.Conv2d(1, 3, 7), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3))
    snapshot = Snapshot(one)
    message = r"expected a network with feature maps .* of at least 2 pixels before its pooling"
    with pytest.raises(ModelError, match=message):
        NAD().repair(one, pictures(), Rng(0))
    assert snapshot.changes() == []


def test_no_hook_is_left_when_it_is_interrupted():
    model = tiny()
    snapshot = Snapshot(model)
    for rows in (1, 3):
        with pytest.raises(Interruption):
            NAD(epochs=2, teacher_epochs=2).repair(
                model, pictures(), Rng(0), on_round=interrupt_at(rows)
            )
    assert snapshot.changes() == []


def test_each_stage_says_where_it_diverged():
    fields = {"learning_rate": 1e200, "epochs": 2, "teacher_epochs": 2}
    result = NAD(**fields).repair(tiny(), pictures(), Rng(0))
    assert [note.split()[1] for note in result.notes] == ["teach", "distill"]
    assert all(t.isfinite().all() for t in result.model.state_dict().values())


def test_wrong_fields():
    with pytest.raises(SpecError, match="power of nad to be greater than or equal to 1"):
        build("defense", "nad", {"power": 0.5})
