"""The contract of an inverter: triggers out of a network and a few images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from excise.seeding import Rng
from excise.testing.guards import (
    Interruption,
    Snapshot,
    interrupt_at,
    nothing_global_changes,
    rebuilt_from_spec,
)
from excise.testing.planted import Planted, planted_digits, shared_folder
from excise.types import Inverter, RecoveredTrigger, Row

__all__ = ["InverterContract"]


class InverterContract:
    """What every inverter promises. Override :meth:`inverter`; the rest is tests."""

    @pytest.fixture
    def inverter(self) -> Inverter:
        """Return the inverter, with settings that finish in about a second on 8 × 8 digits."""
        pytest.fail("override the fixture `inverter`")

    @pytest.fixture
    def planted(self, tmp_path_factory: pytest.TempPathFactory) -> Planted:
        """Return the tiny planted network and the images around it."""
        return planted_digits(shared_folder(tmp_path_factory))

    def fit(
        self, inverter: Inverter, model: nn.Module, planted: Planted, seed: int = 3
    ) -> list[RecoveredTrigger]:
        """Return what the inverter recovers."""
        return list(inverter.fit(model, planted.data, Rng(seed)))

    def test_it_fits_the_protocol(self, inverter: Inverter) -> None:
        """A defense takes it where it asks for an inverter."""
        assert isinstance(inverter, Inverter)

    @pytest.mark.parametrize("training", [False, True])
    def test_it_leaves_the_given_network_as_it_was(
        self, inverter: Inverter, planted: Planted, training: bool
    ) -> None:
        """Values, flags, gradients and hooks; nor does anything global change."""
        model = planted.network().train(training)
        before, images = Snapshot(model), planted.data.everything().fingerprint()
        with nothing_global_changes():
            self.fit(inverter, model, planted)
        assert before.changes() == []
        assert planted.data.everything().fingerprint() == images

    def test_it_leaves_the_given_network_as_it_was_when_interrupted(
        self, inverter: Inverter, planted: Planted
    ) -> None:
        """An exception out of the progress callback passes through and leaves no trace."""
        calls: list[Row] = []
        inverter.fit(planted.network(), planted.data, Rng(3), on_round=calls.append)
        model = planted.network()
        before = Snapshot(model)
        for number in {1, len(calls)} if calls else ():
            with nothing_global_changes(), pytest.raises(Interruption):
                inverter.fit(model, planted.data, Rng(3), on_round=interrupt_at(number))
            assert before.changes() == []

    def test_what_it_recovers_are_triggers(self, inverter: Inverter, planted: Planted) -> None:
        """Each keeps shape, type and range, and leaves the given images alone."""
        images = planted.test.subset(torch.arange(6)).floats()
        given = images.clone()
        for found in self.fit(inverter, planted.network(), planted):
            assert isinstance(found, RecoveredTrigger)
            result = found(images)
            assert result.shape == images.shape
            assert result.dtype == images.dtype
            assert not result.requires_grad
            assert float(result.min()) >= 0
            assert float(result.max()) <= 1
            assert torch.equal(result, found(images))
            assert torch.equal(images, given)

    def test_its_evidence_is_json(self, inverter: Inverter, planted: Planted) -> None:
        """Evidence goes into the record; a target is a class; rates are fractions."""
        for found in self.fit(inverter, planted.network(), planted):
            json.dumps(dataclasses.asdict(found.evidence), allow_nan=False)
            assert found.target is None or 0 <= found.target < planted.data.num_classes
            rate = found.evidence.flip_rate
            assert rate is None or 0 <= rate <= 1

    def test_the_same_seed_recovers_the_same(self, inverter: Inverter, planted: Planted) -> None:
        """To the last bit; whatever the caller's modes."""
        images = planted.test.subset(torch.arange(6)).floats()
        first = self.fit(inverter, planted.network(), planted)
        with torch.no_grad():
            second = self.fit(inverter, planted.network().train(), planted)
        assert [t.target for t in first] == [t.target for t in second]
        assert [t.evidence for t in first] == [t.evidence for t in second]
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one(images), other(images))

    def test_its_spec_builds_it_again(self, inverter: Inverter, tmp_path: Path) -> None:
        """What stands in the record is enough to run it again."""
        assert rebuilt_from_spec("inverter", inverter) == inverter
