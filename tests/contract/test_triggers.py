"""Every trigger of the registry keeps the contract: those made here, and those attacks make."""

import pytest
import torch

from excise import registry
from excise.attacks import Drawn
from excise.seeding import Rng
from excise.testing import TriggerContract
from excise.triggers import Blend, Patch


def checkered(shape):
    """A patch of which every other pixel is replaced, away from the edges."""
    mask = torch.tensor([[True, False], [False, True]])
    return Patch(torch.full((shape[0], 2, 2), 0.5), mask, 2, -4)


def faint(shape):
    """A blend that a picture file just so carries."""
    return Blend(torch.rand(shape, generator=torch.Generator().manual_seed(1)), 0.05)


def of_attack(row, seed):
    attack = registry.build("attack", row.name)
    return lambda shape: attack.trigger(shape, Rng(seed))


# One for every row of kind "trigger" at least; test_every_trigger_row_is_held_to_the_contract says
# which is missing.
MAKERS = {"patch": checkered, "blend": faint}
DRAWN = [row for row in registry.rows("attack") if issubclass(row.load(), Drawn)]
ALL = MAKERS | {f"{row.name}-seed-{k}": of_attack(row, k) for row in DRAWN for k in (0, 1)}

pytestmark = pytest.mark.fast


class TestTriggers(TriggerContract):
    @pytest.fixture(params=ALL.values(), ids=ALL)
    def make(self, request):
        return request.param


@pytest.mark.parametrize("row", registry.rows("trigger"), ids=lambda row: row.name)
def test_every_trigger_row_is_held_to_the_contract(row):
    made = {type(make((3, 16, 16))) for make in ALL.values()}
    assert row.load() in made, f"{row.name} is new: give it a maker in MAKERS, {__name__}"
