"""Every defense of the registry keeps the contract; a new row is held to it without a new test."""

import pytest
from tests.contract.settings import DEFENSES, Settings, built

from excise import registry
from excise.seeding import Rng
from excise.testing import DefenseContract


class TestDefenses(DefenseContract):
    @pytest.fixture(params=registry.rows("defense"), ids=lambda row: row.name)
    def row(self, request):
        return request.param

    @pytest.fixture
    def settings(self, row) -> Settings:
        if row.name not in DEFENSES:
            pytest.fail(f"{row.name} is new: give it an entry in tests/contract/settings.py")
        return DEFENSES[row.name]

    @pytest.fixture
    def method(self, row, settings, planted):
        return built(row.name, planted.backdoor.trigger, settings.quick)

    @pytest.fixture
    def full(self, row, settings, planted):
        return built(row.name, planted.backdoor.trigger, settings.full)

    @pytest.fixture
    def without_tuning(self, row, settings, planted):
        if settings.untuned is None:
            return None
        fields = {**settings.quick, **settings.untuned}
        return built(row.name, planted.backdoor.trigger, fields)

    @pytest.fixture
    def needs_validation(self, settings):
        return settings.validation

    @pytest.fixture
    def needs_convolution(self, settings):
        return settings.convolution

    @pytest.fixture
    def needs_batch_norm(self, settings):
        return settings.batch_norm

    @pytest.fixture
    def lowers_asr(self, row):
        return row.lowers_asr


@pytest.mark.parametrize("name", [n for n, s in DEFENSES.items() if s.untuned is not None])
def test_the_quick_settings_still_cut_something(name, planted):
    method = built(name, planted.backdoor.trigger, DEFENSES[name].quick)
    assert method.repair(planted.network(), planted.data, Rng(3)).edits


@pytest.mark.fast
def test_the_settings_are_of_rows_that_exist():
    assert {row.name for row in registry.rows("defense")} == set(DEFENSES)
