"""Every scanner of the registry keeps the contract."""

import pytest

from excise import registry
from excise.testing import ScannerContract

# Settings with which a scanner finishes in about a second on 100 digits, and still raises an alarm.
QUICK: dict[str, dict[str, object]] = {
    "combined": {"effort": 0.05},
    "neural-cleanse": {"rounds": 24, "round_images": 12, "start_free": False, "penalty": 0.05},
    "mm-bd": {"starts": 2, "steps": 12, "learning_rate": 0.1},
}


class TestScanners(ScannerContract):
    @pytest.fixture(params=registry.rows("scanner"), ids=lambda row: row.name)
    def scanner(self, request):
        row = request.param
        if row.name not in QUICK:
            pytest.fail(f"{row.name} is new: give it quick settings in QUICK, {__name__}")
        return registry.build("scanner", row.name, QUICK[row.name])


def test_the_settings_are_of_rows_that_exist():
    assert {row.name for row in registry.rows("scanner")} == set(QUICK)
