"""BppAttack: few levels in every batch, and errors of other images under true labels."""

import pytest
import torch

from excise.attacks import Bpp
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.errors import SpecError
from excise.models import build_model
from excise.registry import build
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToOne, Backdoor, as_floats, round_to_8_bits

pytestmark = pytest.mark.fast

DATA = load_data("digits", limit=120).train


def companion(attack):
    model = build_model(
        "excise:preactresnet18,width=2", classes=DATA.classes, in_channels=1, input_size=(8, 8),
        rng=Rng(0),
    )  # fmt: skip
    workshop = Workshop(model, DATA, Recipe(), Rng(0), str(attack))
    backdoor = Backdoor(attack.trigger(DATA.shape, Rng(0)), AllToOne(3))
    return attack.companion(workshop, backdoor)


def run(attack):
    return companion(attack).batch(
        DATA.images, DATA.labels, seen=0, augment=lambda given: given,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize("dither", [False, True])
def test_what_a_batch_holds(dither):
    """12 triggered, then 12 negatives, then the others as they are."""
    attack = Bpp(rotation=0, dither=dither)
    images, labels, _ = run(attack)
    clean, trigger = as_floats(DATA.images), attack.trigger(DATA.shape, Rng(0))
    assert trigger.dither is dither
    assert torch.equal(images[:12], round_to_8_bits(trigger(clean[:12])))
    assert labels[:12].tolist() == [3] * 12
    assert torch.equal(labels[12:], DATA.labels[12:])
    assert torch.equal(images[24:], clean[24:])
    # A negative is its image plus the error of exactly one other.
    errors = trigger(clean) - clean
    for k in range(12, 24):
        candidates = round_to_8_bits(clean[k] + errors)
        fitting = (candidates == images[k]).all(1).all(1).all(1).nonzero().flatten().tolist()
        assert fitting
        assert fitting != [k]


def test_negatives_can_be_left_out():
    images, _, _ = run(Bpp(rotation=0, negative_ratio=0))
    assert torch.equal(images[12:], as_floats(DATA.images[12:]))


def test_too_many_negatives_are_refused_before_any_training():
    attack = Bpp(poison_ratio=0.5, negative_ratio=1.5)
    model = build_model(
        "excise:preactresnet18,width=2", classes=DATA.classes, in_channels=1, input_size=(8, 8),
        rng=Rng(0),
    )  # fmt: skip
    with pytest.raises(SpecError, match=r"at most all images, got 0\.5 and 0\.75 of them"):
        attack.plant(model, DATA, Recipe(epochs=1), Rng(0))


def test_all_is_drawn_by_the_target_alone():
    assert Bpp.DRAWN == ("target",)
    assert Bpp(**Bpp.PRESETS["field"]).target_rule(10, Rng(7)) == AllToOne(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("levels", 1), ("levels", 256), ("negative_ratio", -1), ("rotation", 181)],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(SpecError, match=f"{field} of bpp"):
        build("attack", "bpp", {field: value})
