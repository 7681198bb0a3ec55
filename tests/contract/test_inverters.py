"""Every inverter of the registry keeps the contract."""

import dataclasses

import pytest

from excise import registry
from excise.testing import InverterContract

# Settings with which an inverter finishes in about a second on 90 digits.
QUICK: dict[str, dict[str, object]] = {
    "oracle": {},
    "bti-dbf": {"width": 4, "pretrain_epochs": 1, "mask_epochs": 2, "generator_epochs": 3},
    "neural-cleanse": {
        "rounds": 8, "round_images": 8, "success_rate": 0.5, "only_flagged": False,
    },
    "universal": {
        "rounds": 8, "batch_size": 8, "drop_after": 4, "success_rate": 0.3, "learning_rate": 0.1,
    },
    "spatial": {
        "rounds": 8, "batch_size": 8, "drop_after": 4, "success_rate": 0.1, "learning_rate": 1.0,
    },
    "smooth": {
        "rounds": 8, "batch_size": 8, "drop_after": 4, "success_rate": 0.1, "learning_rate": 0.3,
    },
    "spectral": {
        "rounds": 8, "batch_size": 8, "drop_after": 4, "success_rate": 0.3, "learning_rate": 0.3,
    },
    "combined": {"effort": 0.05, "least": 0.0},
    "sample-specific": {"probe_images": 6, "steps": 2, "keep": 2},
}  # fmt: skip


class TestInverters(InverterContract):
    @pytest.fixture(params=registry.rows("inverter"), ids=lambda row: row.name)
    def inverter(self, request, planted):
        row = request.param
        if row.name not in QUICK:
            pytest.fail(f"{row.name} is new: give it quick settings in QUICK, {__name__}")
        told = {
            field.name: planted.backdoor.trigger
            for field in dataclasses.fields(row.load())
            if field.metadata.get("told")
        }
        return registry.build("inverter", row.name, told | QUICK[row.name])


def test_the_oracle_says_that_it_was_told(planted):
    (found,) = registry.build("inverter", "oracle", {"trigger": planted.backdoor.trigger}).fit(
        planted.network(), planted.data, None
    )
    assert found.evidence.told
    assert found.trigger is planted.backdoor.trigger
    assert found.target is None
