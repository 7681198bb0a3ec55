"""The contract of a scanner: is this network backdoored? From a few clean images."""

from __future__ import annotations

import json
import math
from typing import Any

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
from excise.types import DefenderData, Detector, Diagnosis, Row

__all__ = ["ScannerContract"]


class ScannerContract:
    """What every scanner promises. Override :meth:`scanner`; the rest is tests."""

    @pytest.fixture
    def scanner(self) -> Detector:
        """Return the scanner, with settings that finish in about a second on 8 × 8 digits."""
        pytest.fail("override the fixture `scanner`")

    @pytest.fixture
    def planted(self, tmp_path_factory: pytest.TempPathFactory) -> Planted:
        """Return the tiny planted network and the images around it."""
        return planted_digits(shared_folder(tmp_path_factory))

    def test_it_fits_the_protocol(self, scanner: Detector) -> None:
        """It has the method that is called."""
        assert isinstance(scanner, Detector)

    @pytest.mark.parametrize("state", ["eval", "train", "frozen"])
    def test_it_leaves_the_given_network_as_it_was(
        self, scanner: Detector, planted: Planted, state: str
    ) -> None:
        """Values, flags, gradients and hooks; nor does anything global change."""
        model = planted.network().train(state == "train").requires_grad_(state != "frozen")
        before, images = Snapshot(model), planted.data.everything().fingerprint()
        with nothing_global_changes():
            scan(scanner, model, planted.data)
        assert before.changes() == []
        assert planted.data.everything().fingerprint() == images

    def test_it_leaves_the_given_network_as_it_was_when_interrupted(
        self, scanner: Detector, planted: Planted
    ) -> None:
        """An exception out of the progress callback passes through and leaves no trace."""
        calls: list[Row] = []
        scanner.scan(planted.network(), planted.data, Rng(3), on_round=calls.append)
        assert calls, "call on_round after every round: it is how progress reaches a person"
        model = planted.network().train()
        before = Snapshot(model)
        for number in {1, len(calls)}:
            with nothing_global_changes(), pytest.raises(Interruption):
                scanner.scan(model, planted.data, Rng(3), on_round=interrupt_at(number))
            assert before.changes() == []

    def test_its_diagnosis_agrees_with_itself(self, scanner: Detector, planted: Planted) -> None:
        """An alarm is a statistic at the threshold or above, and names classes; else none."""
        said = scan(scanner, planted.network(), planted.data)
        assert said.backdoored is (said.statistic >= said.threshold)
        assert bool(said.targets) is said.backdoored
        assert len(set(said.targets)) == len(said.targets)
        assert all(0 <= target < planted.data.num_classes for target in said.targets)
        assert len(said.per_class) == planted.data.num_classes
        suspicion = [said.per_class[target] for target in said.targets]
        assert suspicion == sorted(suspicion, reverse=True), "the most suspicious class first"

    def test_its_diagnosis_is_json(self, scanner: Detector, planted: Planted) -> None:
        """It goes into the record, as does each round; figures are plain and finite."""
        calls: list[Row] = []
        said = scanner.scan(planted.network(), planted.data, Rng(3), on_round=calls.append)
        json.dumps(said.to_json(), allow_nan=False)
        json.dumps([dict(row) for row in calls], allow_nan=False)
        assert type(said.backdoored) is bool
        figures = (said.statistic, said.threshold, *said.per_class, *said.seconds.values())
        assert all(type(figure) is float and math.isfinite(figure) for figure in figures)
        assert all(type(target) is int for target in said.targets)
        assert all(isinstance(row["stage"], str) for row in calls)
        assert all(note.endswith(".") for note in said.notes)

    @pytest.mark.parametrize("state", ["eval", "train", "no_grad"])
    def test_the_same_seed_gives_the_same_diagnosis(
        self, scanner: Detector, planted: Planted, state: str
    ) -> None:
        """To the last bit; whatever the caller's modes, and whatever was drawn before."""
        first = story(scan(scanner, planted.network(), planted.data))
        torch.rand(7)  # a caller's own draws change nothing
        model = planted.network().train(state == "train")
        with torch.set_grad_enabled(state != "no_grad"):
            assert story(scan(scanner, model, planted.data)) == first

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_it_works_in_the_networks_type_where_it_lies(
        self, scanner: Detector, planted: Planted, dtype: torch.dtype, device: str
    ) -> None:
        """Single or double precision, processor or GPU."""
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        model = planted.network().to(device, dtype)
        scan(scanner, model, planted.data.to(device))

    def test_it_needs_no_validation_images(self, scanner: Detector, planted: Planted) -> None:
        """Nothing is decided by images that were held out."""
        scan(scanner, planted.network(), DefenderData(planted.data.train, None, "noise"))

    def test_its_spec_builds_it_again(self, scanner: Detector) -> None:
        """What stands in the record is enough to run it again."""
        assert rebuilt_from_spec("scanner", scanner) == scanner


def scan(scanner: Detector, model: nn.Module, data: DefenderData, seed: int = 3) -> Diagnosis:
    """Return what the scanner says of a network."""
    said = scanner.scan(model, data, Rng(seed))
    assert isinstance(said, Diagnosis)
    return said


def story(said: Diagnosis) -> dict[str, Any]:
    """Return everything a diagnosis says but how long it took."""
    return {k: v for k, v in said.to_json().items() if k != "seconds"}
