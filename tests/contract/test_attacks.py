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
FIELDS: dict[str, dict[str, object]] = {
    "adap-blend": {"poison_ratio": 0.1, "cover_rate": 0.1},
    "adap-patch": {"poison_ratio": 0.1, "cover_rate": 0.1},
    "input-aware": {"mask_epochs": 2, "width": 2},
    "label-consistent": {"adversarial_epochs": 1, "steps": 2},
    "lf": {"images": 4, "max_passes": 1},
    "lira": {"width": 2},
    "ssba": {"bits": 1, "width": 2, "batch_size": 8, "encoder_epochs": 2, "learning_rate": 0.002},
    "trojannn": {"steps": 5},
}


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
