"""Every defense of the registry keeps the contract; a new row is held to it without a new test."""

import pytest

from excise import registry
from excise.inversion import Oracle
from excise.seeding import Rng
from excise.testing import DefenseContract

# Settings with which a defense finishes in about a second on 90 digits, and still cuts something.
QUICK = {
    "none": {},
    "grad-prune": {"max_accuracy_drop": 1.0, "patience": 3, "max_tune_epochs": 2},
}
# Settings with which a user of 50 images a class would run it, where they are not the defaults.
# Grad-Prune: those of `excise demo`. The published threshold and rate suit 100 images a class: here
# pruning ends with its first or second filter, and most backdoors stay.
FULL = {
    "grad-prune": {"max_accuracy_drop": 0.3, "learning_rate": 0.01},
}
# Defenses that use every image to learn from, or that need no convolution.
WITHOUT_VALIDATION = {"none"}
WITHOUT_CONVOLUTION = {"none"}


def built(row, planted, fields):
    """Build the defense of a row; its inverter, if it takes one, is told the trigger."""
    names = {field["name"] for field in row.fields()}
    told = {"inverter": Oracle(planted.backdoor.trigger)} if "inverter" in names else {}
    return registry.build("defense", row.name, told | fields)


class TestDefenses(DefenseContract):
    @pytest.fixture(params=registry.rows("defense"), ids=lambda row: row.name)
    def row(self, request):
        return request.param

    @pytest.fixture
    def method(self, row, planted):
        if row.name not in QUICK:
            pytest.fail(f"{row.name} is new: give it quick settings in QUICK, {__name__}")
        return built(row, planted, QUICK[row.name])

    @pytest.fixture
    def full(self, row, planted):
        return built(row, planted, FULL.get(row.name, {}))

    @pytest.fixture
    def needs_validation(self, row):
        return row.name not in WITHOUT_VALIDATION

    @pytest.fixture
    def needs_convolution(self, row):
        return row.name not in WITHOUT_CONVOLUTION

    @pytest.fixture
    def lowers_asr(self, row):
        return row.lowers_asr


@pytest.mark.parametrize("name", ["grad-prune"])
def test_the_quick_settings_still_cut_something(name, planted):
    method = built(registry.find("defense", name), planted, QUICK[name])
    assert method.repair(planted.network(), planted.data, Rng(3)).edits


@pytest.mark.fast
def test_the_tables_name_rows_that_exist():
    known = {row.name for row in registry.rows("defense")}
    assert known == set(QUICK)
    assert known >= {*FULL, *WITHOUT_VALIDATION, *WITHOUT_CONVOLUTION}
