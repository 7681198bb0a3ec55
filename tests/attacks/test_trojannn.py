"""TrojanNN: where the patch lies and what is refused; its steps are in tests/reference."""

import copy

import pytest
import torch
from PIL import Image
from torch import nn

from excise.attacks import TrojanNN
from excise.attacks.workshop import Workshop
from excise.errors import DataError, ModelError, TriggerError
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Interruption, Snapshot, interrupt_at
from excise.training import Recipe
from excise.types import AllToOne, LabelledImages, ignore_round

pytestmark = pytest.mark.fast


@pytest.fixture
def network():
    return build_model(
        "excise:preactresnet18,width=2", classes=4, in_channels=1, input_size=(8, 8), rng=Rng(0)
    )


def workshop_of(network, checkpoints=None, on_round=ignore_round):
    data = LabelledImages(torch.zeros(8, 1, 8, 8), torch.arange(8) % 4, tuple("abcd"))
    recipe = Recipe(epochs=1)
    return Workshop(network, data, recipe, Rng(0), "t", network, checkpoints, on_round)


def answers(network, images, neurons=2):
    """The most connected inputs of the last layer."""
    seen = []
    handle = network.body.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.eval()(images)
    handle.remove()
    chosen = network.body.linear.weight.abs().sum(0).argsort(descending=True)[:neurons]
    return seen[0][0, chosen]


def test_the_patch_drives_the_neurons(network):
    """More than the gray square it starts from; outside of it there is nothing."""
    trigger = TrojanNN(steps=30, size=4).learn(workshop_of(network), AllToOne(0)).trigger
    patch, start = trigger.perturbation[None], TrojanNN().start
    on = TrojanNN(size=4).mask((1, 8, 8))
    gray = on[None, None] * start
    assert answers(network, patch).sum() > answers(network, gray).sum()
    assert (patch[0, 0][~on] == 0).all()
    inside = patch[0, 0][on]
    assert inside.min() >= start - 0.3 - 1e-6
    assert inside.max() <= min(start + 0.3, 1) + 1e-6
    assert (inside - start).abs().max() > 0.09


def test_the_clean_network_stays_as_it_is(network):
    """No gradient, no hook; it is left in eval mode and frozen, as the workshop gives it."""
    network.eval().requires_grad_(False)
    snapshot = Snapshot(network)
    TrojanNN(steps=3).learn(workshop_of(network), AllToOne(0))
    assert snapshot.changes() == []


def test_it_is_done_once(network, tmp_path):
    attack = TrojanNN(steps=5)
    with pytest.raises(Interruption):
        attack.learn(workshop_of(network, tmp_path, interrupt_at(1)), AllToOne(0))
    rows = []
    again = attack.learn(workshop_of(network, tmp_path, rows.append), AllToOne(0))
    assert rows == []
    expected = attack.learn(workshop_of(network), AllToOne(0))
    assert torch.equal(again.trigger.perturbation, expected.trigger.perturbation)


def test_another_picture_under_the_same_name_is_another_planting(network, tmp_path):
    shape, drawn = tmp_path / "shape.png", Image.new("L", (8, 8))
    drawn.putpixel((1, 2), 255)
    drawn.save(shape)
    attack, data = TrojanNN(picture=shape, steps=2), workshop_of(network).data

    def plant(on_round=ignore_round):
        fresh, surrogate = copy.deepcopy(network), copy.deepcopy(network)
        return attack.plant(
            fresh, data, Recipe(epochs=1), Rng(0), surrogate=surrogate,
            checkpoints=tmp_path / "c", on_round=on_round,
        )  # fmt: skip

    with pytest.raises(Interruption):
        plant(interrupt_at(1))
    drawn.putpixel((5, 6), 255)
    drawn.save(shape)
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        plant()
    drawn.putpixel((5, 6), 0)
    drawn.save(shape)
    assert plant().backdoor.trigger.perturbation[0].nonzero().tolist() == [[2, 1]]


def test_a_drawn_shape(tmp_path):
    """The patch lies where the picture is not black."""
    drawn = Image.new("RGB", (8, 8))
    for column, gray in enumerate((1, 128, 255)):
        drawn.putpixel((column, 2), (gray, gray, gray))
    drawn.save(tmp_path / "shape.png")
    mask = TrojanNN(picture=tmp_path / "shape.png").mask((1, 8, 8))
    assert mask.nonzero().tolist() == [[2, 0], [2, 1], [2, 2]]
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(TriggerError, match=r"a picture that is not black everywhere, got .*black"):
        TrojanNN(picture=tmp_path / "black.png").mask((1, 8, 8))
    with pytest.raises(DataError, match="a picture file"):
        TrojanNN(picture=tmp_path / "none.png").mask((1, 8, 8))


@pytest.mark.parametrize(
    ("shape", "most"), [((1, 8, 8), 7), ((3, 32, 20), 18), ((3, 224, 224), 204)]
)
def test_a_square_that_does_not_fit_is_refused(shape, most):
    assert TrojanNN(size=most).mask(shape).sum() == most**2
    with pytest.raises(
        TriggerError, match=rf"a square that fits into .*, got .*Choose a size of at most {most}\."
    ):
        TrojanNN(size=most + 1).mask(shape)


def test_networks_without_features_to_drive_are_refused():
    convolution = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten())
    with pytest.raises(ModelError, match="a network whose last step is a linear layer"):
        TrojanNN(steps=1).learn(workshop_of(convolution), AllToOne(0))
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ModelError, match="a last layer with at least 65 inputs, got 64"):
        TrojanNN(neurons=65).learn(workshop_of(narrow), AllToOne(0))
