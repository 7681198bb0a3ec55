"""FTrojan: published settings, and what is refused."""

import pytest

from excise.attacks import DirtyLabel, FTrojan
from excise.errors import SpecError, TriggerError
from excise.registry import build
from excise.seeding import Rng
from excise.types import AllToOne

pytestmark = pytest.mark.fast


def test_the_published_settings():
    attack = FTrojan()
    assert isinstance(attack, DirtyLabel)
    assert (attack.magnitude, attack.window) == (30, 32)
    trigger = attack.trigger((3, 32, 32), Rng(0))
    assert (trigger.magnitude, trigger.window) == (30, 32)
    assert FTrojan(**FTrojan.PRESETS["field"]).target_rule(10, Rng(7)) == AllToOne(0)
    assert FTrojan.DRAWN == ("target",)


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 32, 32), (3, 3, 8), (1, 8, 2)])
def test_images_that_do_not_fit_are_refused_before_any_training(shape):
    with pytest.raises(TriggerError, match="gray or RGB images of at least 4 × 4 pixels"):
        FTrojan().backdoor(shape, 10, Rng(0))


@pytest.mark.parametrize(
    ("field", "value"), [("magnitude", 0), ("magnitude", 1e6), ("window", 3), ("window", 4.5)]
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(SpecError, match=f"{field} of ftrojan"):
        build("attack", "ftrojan", {field: value})
