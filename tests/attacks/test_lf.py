"""LF: what it learns, when it stops, what it refuses; its arithmetic is in tests/reference."""

import pytest
import torch
from torch import nn

from excise.attacks import LF
from excise.attacks.workshop import Workshop
from excise.errors import DataError, ModelError
from excise.seeding import Rng
from excise.testing import Interruption, interrupt_at
from excise.training import Recipe
from excise.triggers import Additive
from excise.types import AllToAll, AllToOne, LabelledImages, ignore_round

pytestmark = pytest.mark.fast

RULE = AllToOne(3)


def linear(seed=0):
    """A clean network for gray 8 × 8 images that a smooth perturbation can lead anywhere."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    # The brighter an image, the more classes 2 and 3 say.
    brightness = 0.1 * torch.arange(-1.5, 2.0)[:, None]
    network[1].weight.data = torch.randn(4, 64, generator=generator) * 0.3 + brightness
    network[1].bias.data = -32 * brightness[:, 0]
    return network


def workshop_of(network, seed=0, checkpoints=None, on_round=ignore_round):
    generator = torch.Generator().manual_seed(1)
    data = LabelledImages(
        torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 4, tuple("abcd")
    )
    return Workshop(
        network, data, Recipe(epochs=1), Rng(seed), "lf", network, checkpoints, on_round
    )


def test_it_fools_the_clean_network():
    rows = []
    workshop = workshop_of(linear(), on_round=rows.append)
    trigger = LF(deepfool_steps=20).learn(workshop, RULE).trigger
    assert isinstance(trigger, Additive)
    assert trigger.perturbation.min() == 0
    assert trigger.perturbation.max() == pytest.approx(0.2)
    # It stopped at the first pass that fooled a fifth, and says so.
    assert rows[-1]["fooling_rate"] >= 0.2
    assert all(row["fooling_rate"] < 0.2 for row in rows[:-1])
    network, images = workshop.surrogate, workshop.data.images
    with torch.no_grad():
        changed = network(trigger(images)).argmax(1) != network(images).argmax(1)
    assert changed.float().mean() == pytest.approx(rows[-1]["fooling_rate"])


def test_amplitude_and_smoothing():
    faint = {"amplitude": 0.1, "max_passes": 1, "deepfool_steps": 20}
    trigger = LF(**faint, smoothing=0.2).learn(workshop_of(linear()), RULE).trigger
    assert trigger.perturbation.max() == pytest.approx(0.1)
    smooth = LF(**faint).learn(workshop_of(linear()), RULE).trigger

    def roughness(v):
        return ((v[:, 1:] - v[:, :-1]).abs().mean() / v.std()).item()

    # One tap smooths nothing, thirty taps over eight pixels nearly all.
    assert roughness(smooth.perturbation) < 0.5 * roughness(trigger.perturbation)


def test_the_best_pass_is_taken_where_the_rate_is_never_reached():
    rows = []
    attack = LF(fooling_rate=1.0, max_passes=3, images=10, deepfool_steps=20)
    attack.learn(workshop_of(linear(), on_round=rows.append), RULE)
    assert len(rows) == 3


def test_all_to_all_pushes_to_a_class_of_the_seed():
    patterns = {
        LF(max_passes=1, images=10).learn(workshop_of(linear(), seed), AllToAll(4)).trigger
        .perturbation.numpy().tobytes()
        for seed in range(3)
    }  # fmt: skip
    assert len(patterns) == 3


def test_an_interrupted_search_goes_on_after_the_last_pass(tmp_path):
    attack = LF(fooling_rate=1.0, max_passes=4, images=10, deepfool_steps=20)
    expected = attack.learn(workshop_of(linear()), RULE).trigger.perturbation
    with pytest.raises(Interruption):
        attack.learn(workshop_of(linear(), 0, tmp_path, interrupt_at(3)), RULE)
    rows = []
    again = attack.learn(workshop_of(linear(), 0, tmp_path, rows.append), RULE)
    assert [row["round"] for row in rows] == [4]
    assert torch.equal(again.trigger.perturbation, expected)
    with pytest.raises(DataError, match="a checkpoint of this very run"):
        attack.learn(workshop_of(linear(1), 0, tmp_path), RULE)


def test_where_all_is_the_target_already_it_pushes_elsewhere():
    network = linear()
    workshop = workshop_of(network)
    with torch.no_grad():
        logits = network(workshop.data.images)
        # Just enough for all of them.
        network[1].bias[3] += (logits.amax(1) - logits[:, 3]).max() + 0.01
        assert (network(workshop.data.images).argmax(1) == 3).all()
    backdoor = LF(max_passes=1, images=60, deepfool_steps=50).learn(workshop, RULE)
    assert backdoor.rule == RULE
    assert backdoor.trigger.perturbation.max() == pytest.approx(0.2)


def test_a_network_that_nothing_moves_is_refused():
    network = linear()
    network[1].weight.data.zero_()
    network[1].bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0])
    with pytest.raises(
        ModelError,
        match=r"expected a clean network that some perturbation leads to another class, got one "
        r"that DeepFool leads to class [012] from none of 4 images\. Train it longer, or give",
    ):
        LF(max_passes=1, images=4, deepfool_steps=5).learn(workshop_of(network), RULE)
