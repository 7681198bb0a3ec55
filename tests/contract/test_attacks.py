"""Every attack of the registry keeps the contract; a new row is held to it without a new test."""

import pytest

from excise import registry
from excise.attacks import Poisoning
from excise.testing import AttackContract, PoisoningContract

ROWS = registry.rows("attack")
POISONING = [row for row in ROWS if issubclass(row.load(), Poisoning)]
OTHERS = [row for row in ROWS if row not in POISONING]
# What a row needs beside its defaults, to run on 8 × 8 gray digits.
FIELDS: dict[str, dict[str, object]] = {}


def maker(row):
    return lambda **fields: registry.build("attack", row.name, FIELDS.get(row.name, {}) | fields)


class TestAttacks(AttackContract):
    @pytest.fixture(params=OTHERS, ids=lambda row: row.name)
    def attack(self, request):
        return maker(request.param)()


class TestPoisoningAttacks(PoisoningContract):
    @pytest.fixture(params=POISONING, ids=lambda row: row.name)
    def make(self, request):
        return maker(request.param)
