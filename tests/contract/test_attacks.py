"""Every attack of the registry keeps the contract; a new row is held to it without a new test."""

import pytest

from excise import registry
from excise.attacks import CleanLabel, DirtyLabel, Drawn
from excise.testing import (
    AttackContract,
    CleanLabelContract,
    DirtyLabelContract,
    DrawnContract,
)

ROWS = registry.rows("attack")
# What a row needs beside its defaults, to run on 8 × 8 gray digits.
FIELDS: dict[str, dict[str, object]] = {}


def maker(row):
    return lambda **fields: registry.build("attack", row.name, FIELDS.get(row.name, {}) | fields)


def rows_of(kind):
    return [row for row in ROWS if issubclass(row.load(), kind)]


class TestAttacks(AttackContract):
    @pytest.fixture(params=ROWS, ids=lambda row: row.name)
    def attack(self, request):
        return maker(request.param)()


class TestDrawn(DrawnContract):
    @pytest.fixture(params=rows_of(Drawn), ids=lambda row: row.name)
    def make(self, request):
        return maker(request.param)


class TestDirtyLabel(DirtyLabelContract):
    @pytest.fixture(params=rows_of(DirtyLabel), ids=lambda row: row.name)
    def make(self, request):
        return maker(request.param)


if rows_of(CleanLabel):

    class TestCleanLabel(CleanLabelContract):
        @pytest.fixture(params=rows_of(CleanLabel), ids=lambda row: row.name)
        def make(self, request):
            return maker(request.param)
