"""WaNet: a warp in every batch, and noisy warps under true labels."""

import pytest
import torch

from excise.attacks import WaNet
from excise.attacks.workshop import Workshop
from excise.data import load_data
from excise.errors import SpecError, TriggerError
from excise.models import build_model
from excise.registry import build
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToOne, Backdoor, as_floats, round_to_8_bits

pytestmark = pytest.mark.fast

DATA = load_data("digits", limit=120).train


def run(attack):
    model = build_model(
        "excise:preactresnet18,width=2", classes=DATA.classes, in_channels=1, input_size=(8, 8),
        rng=Rng(0),
    )  # fmt: skip
    workshop = Workshop(model, DATA, Recipe(), Rng(0), str(attack))
    backdoor = Backdoor(attack.trigger(DATA.shape, Rng(0)), AllToOne(3))
    return attack.companion(workshop, backdoor).batch(
        DATA.images, DATA.labels, seen=0, augment=lambda given: given,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_what_a_batch_holds():
    """12 warped, then 24 warped with noise, then the others as they are."""
    attack = WaNet(rotation=0)
    images, labels, _ = run(attack)
    clean, trigger = as_floats(DATA.images), attack.trigger(DATA.shape, Rng(0))
    warped = round_to_8_bits(trigger(clean))
    assert torch.equal(images[:12], warped[:12])
    assert labels[:12].tolist() == [3] * 12
    assert torch.equal(labels[12:], DATA.labels[12:])
    assert torch.equal(images[36:], clean[36:])
    noisy = images[12:36]
    assert not (noisy == warped[12:36]).all((1, 2, 3)).any()
    assert not (noisy == clean[12:36]).all((1, 2, 3)).any()
    # The noise goes either way: near the warped images on average, nearer than to the clean ones.
    to_warped = (noisy - warped[12:36]).mean((0, 1)).abs().mean()
    to_clean = (noisy - clean[12:36]).mean((0, 1)).abs().mean()
    assert to_warped < to_clean


def test_noise_can_be_left_out():
    images, _, _ = run(WaNet(rotation=0, cross_ratio=0))
    assert torch.equal(images[12:], as_floats(DATA.images[12:]))


def test_rotation_turns_images_of_every_kind():
    still, turned = (run(WaNet(rotation=degrees))[0] for degrees in (0, 10))
    changed = (still != turned).any(1).any(1).any(1)
    for part in (changed[:12], changed[12:36], changed[36:]):
        assert 0 < int(part.sum()) < len(part)


def test_the_seed_draws_the_field():
    fields = [WaNet().trigger((3, 16, 16), Rng(seed)).flow for seed in (0, 0, 1)]
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])
    assert WaNet.DRAWN is None


def test_the_field_moves_pixels_equally_far_in_both_directions():
    """As measured in pixels, on images that are not square."""
    flow = WaNet(grid_size=16).trigger((1, 16, 160), Rng(0)).flow
    right, below = flow[0].abs().mean() * 160, flow[1].abs().mean() * 16
    assert 0.7 < float(right / below) < 1.4


def test_images_smaller_than_the_grid_are_refused_before_any_training():
    with pytest.raises(
        TriggerError,
        match=r"expected a field of at most 8 × 8 points for 8 × 12 pixels, got 9 × 9\. Choose a "
        r"grid_size of at most 8",
    ):
        WaNet(grid_size=9).backdoor((3, 8, 12), 10, Rng(0))


def test_too_much_noise_is_refused_before_any_training():
    with pytest.raises(SpecError, match=r"at most all images, got 0\.4 and 0\.8 of them"):
        run(WaNet(poison_ratio=0.4))


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", 0), ("strength", "inf"), ("grid_size", 1), ("cross_ratio", -1), ("rotation", -1)],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(SpecError, match=f"{field} of wanet"):
        build("attack", "wanet", {field: value})
