"""SIG: stripes on the target class, whose labels stay."""

import pytest
import torch

from excise.attacks import CleanLabel, Sig
from excise.errors import SpecError, TriggerError
from excise.models import build_model
from excise.registry import build
from excise.seeding import Rng
from excise.training import Recipe
from excise.types import AllToOne, LabelledImages, round_to_8_bits

pytestmark = pytest.mark.fast


def images(n=40, width=8):
    pixels = torch.randint(
        0, 256, (n, 1, 8, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return LabelledImages(pixels, torch.arange(n) % 4, ("a", "b", "c", "d"))


def test_the_whole_target_class_is_poisoned_and_nothing_else():
    attack, data = Sig(target=2), images()
    backdoor = attack.backdoor(data.shape, 4, Rng(0))
    poisoned = attack.poison(data, backdoor, Rng(0))
    assert isinstance(attack, CleanLabel)
    assert poisoned.index.tolist() == list(range(2, 40, 4))
    assert torch.equal(poisoned.data.labels, data.labels)
    expected = round_to_8_bits(backdoor.trigger(data.floats()[poisoned.index])).mul(255).byte()
    assert torch.equal(poisoned.data.images[poisoned.index], expected)
    rest = data.labels != 2
    assert torch.equal(poisoned.data.images[rest], data.images[rest])


def test_the_fields_choice():
    assert Sig(**Sig.PRESETS["field"]).target_rule(10, Rng(7)) == AllToOne(0)
    assert (Sig().delta, Sig().frequency, Sig().poison_ratio) == (40, 6, 1)
    assert Sig.DRAWN == ("target",)


def test_a_wave_that_vanishes_is_refused_before_any_training():
    """Six waves over twelve columns are sampled at their zeros alone."""
    model = build_model(
        "excise:preactresnet18,width=2", classes=("a", "b", "c", "d"), in_channels=1,
        input_size=(8, 12), rng=Rng(0),
    )  # fmt: skip
    with pytest.raises(TriggerError, match="zero at every column"):
        Sig().plant(model, images(width=12), Recipe(epochs=1), Rng(0))


@pytest.mark.parametrize(
    ("field", "value"), [("delta", 0), ("delta", 256), ("frequency", -1), ("frequency", "inf")]
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(SpecError, match=f"{field} of sig"):
        build("attack", "sig", {field: value})
