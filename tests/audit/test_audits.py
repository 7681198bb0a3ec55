"""The audits on the tiny planted network, undefended, and on one without a backdoor."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from excise.attacks import NoAttack, load_victim, save_victim
from excise.audit import Audit, Finding, InvertAgain, Reactivation, Relearning, audit
from excise.audit.altered import Partly
from excise.audit.attacking import size_of
from excise.audit.existence import similarity
from excise.data import load_data, split_pool
from excise.errors import DataError, ModelError
from excise.inversion import Oracle
from excise.models import build_model
from excise.seeding import Rng
from excise.testing import Planted, shared_folder
from excise.testing.planted import ARCH, RECIPE, once, plain_network
from excise.types import DefenderData, Evidence, RecoveredTrigger, Row

QUICK: list[Audit] = [InvertAgain(), Reactivation(passes=5), Relearning(steps=8)]
NAMES = ["invert-again", "reactivation", "relearning"]


@pytest.fixture
def innocent(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A network like the planted one that never saw a poisoned image."""
    digits = load_data("digits")

    def train(bundle: Path) -> None:
        model = build_model(
            ARCH, classes=digits.train.classes, in_channels=1, input_size=(8, 8),
            mean=digits.mean, std=digits.std, rng=Rng(5),
        )  # fmt: skip
        split = split_pool(digits.train, 0.5, Rng(0).child("split"))
        save_victim(bundle, NoAttack().plant(model, split.victim, RECIPE, Rng(5)), {})

    return load_victim(once(shared_folder(tmp_path_factory) / "innocent", train))[0].model


def told(planted: Planted) -> RecoveredTrigger:
    return RecoveredTrigger(planted.backdoor.trigger, 3, Evidence(told=True))


def timeless(finding: Finding) -> Finding:
    return replace(finding, seconds=0.0)


def test_an_undefended_network_fails(planted: Planted) -> None:
    report = audit(planted.network(), planted.network(), planted.plenty, Rng(1), audits=QUICK)
    assert [finding.name for finding in report.findings] == NAMES
    assert [finding.passed for finding in report.findings] == [False] * 3
    assert report.failed == report.findings
    again = report.findings[0].values
    # Both searches draw the same numbers: of the same network they find the same trigger.
    size = "size of the {} trigger, in pixels"
    assert again[size.format("new")] == again[size.format("recovered")]
    alike = report.findings[1].values["similarity of the trigger's features"]
    assert alike.value == pytest.approx(1)


def test_a_network_without_the_backdoor_does_not_fail(
    planted: Planted, innocent: nn.Module
) -> None:
    report = audit(planted.network(), innocent, planted.plenty, Rng(1), audits=QUICK)
    assert [finding.passed for finding in report.findings] == [True] * 3
    assert not report.failed
    alike = report.findings[1].values["similarity of the trigger's features"]
    assert alike.value is not None
    assert alike.value < 0.8


def test_a_network_that_never_had_one_gives_nothing_to_audit_with(
    planted: Planted, innocent: nn.Module
) -> None:
    report = audit(innocent, planted.network(), planted.data, Rng(1))
    assert [finding.passed for finding in report.findings] == [None] * 3
    assert all("Nothing to audit with" in finding.sentence for finding in report.findings)
    one = Reactivation()
    alone = one.audit(innocent, planted.network(), planted.data, Rng(1))
    assert (alone.name, alone.passed) == ("reactivation", None)
    assert "was recovered" in alone.sentence


def test_a_known_trigger_is_what_is_attacked_with(planted: Planted) -> None:
    report = audit(
        planted.network(), planted.network(), planted.data, Rng(1),
        audits=QUICK[1:], known=told(planted),
    )  # fmt: skip
    assert report.told
    assert [finding.passed for finding in report.findings] == [False, False]
    alone = report.findings[0].values["trigger alone"]
    assert alone.value == 1
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == report.to_json()
    assert report.settings["reactivation"]["passes"] == 5
    assert report.settings["relearning"]["inverter"]["name"] == "NeuralCleanse"  # type: ignore[index]


def test_a_known_trigger_that_does_not_work(planted: Planted) -> None:
    idle = RecoveredTrigger(torch.clone, 3, Evidence(told=True))
    for one in QUICK:
        found = one.audit(planted.network(), planted.network(), planted.data, Rng(1), known=idle)
        assert found.passed is None
        assert "the given trigger steers no single class" in found.sentence


def test_an_oracle_says_nothing_of_a_second_search(planted: Planted) -> None:
    oracle = InvertAgain(inverter=Oracle(planted.backdoor.trigger))
    found = oracle.audit(planted.network(), planted.network(), planted.data, Rng(1))
    assert found.passed is False
    assert "second search" not in found.sentence


@pytest.mark.parametrize("one", QUICK, ids=NAMES)
def test_the_same_seed_gives_the_same_and_nothing_is_touched(
    planted: Planted, innocent: nn.Module, one: Audit
) -> None:
    given, repaired = planted.network(), copy.deepcopy(innocent)
    given.train()
    next(repaired.children()).eval()
    next(repaired.parameters()).requires_grad_(False)
    before = [
        (
            copy.deepcopy(net.state_dict()),
            [m.training for m in net.modules()],
            [p.requires_grad for p in net.parameters()],
        )
        for net in (given, repaired)
    ]
    images, state = planted.data.everything().fingerprint(), torch.get_rng_state()
    rows: list[Row] = []
    first = one.audit(
        given, repaired, planted.data, Rng(7), known=told(planted), on_round=rows.append
    )
    with torch.no_grad():
        second = one.audit(
            planted.network(), copy.deepcopy(innocent), planted.data, Rng(7), known=told(planted)
        )
    assert timeless(first) == timeless(second)
    assert torch.equal(state, torch.get_rng_state())
    assert planted.data.everything().fingerprint() == images
    assert rows
    assert all(row["stage"] for row in rows)
    json.dumps([dict(row) for row in rows], allow_nan=False)
    for net, (weights, modes, free) in zip((given, repaired), before, strict=True):
        now = net.state_dict()
        assert all(torch.equal(now[key], weights[key]) for key in weights)
        assert [m.training for m in net.modules()] == modes
        assert [p.requires_grad for p in net.parameters()] == free
        assert all(p.grad is None for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_double_precision(planted: Planted) -> None:
    for one in QUICK[1:]:
        found = one.audit(
            planted.network().double(), planted.network().double(), planted.data, Rng(1),
            known=told(planted),
        )  # fmt: skip
        assert found.passed is False


def test_a_lesson_that_diverges_ends(planted: Planted) -> None:
    wild = Relearning(steps=8, learning_rate=1e20)
    curve = wild.taught(planted.network(), planted.backdoor.trigger, 3, planted.data, Rng(1))
    assert 1 < len(curve) < 9


def inverse(images: torch.Tensor) -> torch.Tensor:
    return 1 - images


def moved(images: torch.Tensor) -> torch.Tensor:
    return images.roll(1, 3)


def test_where_another_order_of_pixels_is_the_same_trigger_it_cannot_be_told(
    planted: Planted,
) -> None:
    known = RecoveredTrigger(planted.backdoor.trigger, 3, Evidence(told=True))
    lesson = Relearning(steps=2)
    images = planted.plenty.train
    assert lesson.others_of_its_size(inverse, images, Rng(0)) is None
    assert lesson.others_of_its_size(known, images, Rng(0)) is not None


def test_a_control_changes_images_as_much_as_the_trigger(planted: Planted) -> None:
    """Neighbors are alike, so that a shift by one pixel changes less than one in another order."""
    images = planted.plenty.train
    size = size_of(moved, images.floats()).value
    controls = Relearning(controls=2).others_of_its_size(moved, images, Rng(0))
    assert controls is not None
    for control in controls:
        assert isinstance(control, Partly)
        assert size_of(control, images.floats()).value == pytest.approx(size, rel=1e-4)


def test_networks_that_share_no_layers_have_no_similarity(planted: Planted) -> None:
    images, trigger = planted.data.train.floats(), planted.backdoor.trigger
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert similarity(linear, linear, images, trigger) is None
    assert similarity(planted.network(), plain_network(10), images, trigger) is None
    assert similarity(planted.network(), planted.network(), images[:3], trigger) is None


def unheld(data: DefenderData) -> DefenderData:
    return replace(data, validation=None)


@pytest.mark.parametrize("one", [*(one.audit for one in QUICK), audit], ids=[*NAMES, "all"])
def test_bad_input(planted: Planted, one: Callable[..., Any]) -> None:
    network = planted.network()
    with pytest.raises(DataError, match=r"validation images for .*got training images only"):
        one(network, network, unheld(planted.data), Rng(1))
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ModelError, match=r"a repaired network of 10 classes.*got 4 outputs"):
        one(network, other, planted.data, Rng(1))
    with pytest.raises(ModelError, match="a given network of 10 classes"):
        one(other, network, planted.data, Rng(1))


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (Reactivation, {"epsilon": 0}),
        (Reactivation, {"epsilon": 2}),
        (Reactivation, {"passes": 0}),
        (Relearning, {"steps": 0}),
        (Relearning, {"controls": 0}),
        (Relearning, {"learning_rate": -1.0}),
        (InvertAgain, {"inverter": 3}),
        (InvertAgain, {"unknown": 3}),
    ],
)
def test_fields_out_of_range_are_refused(make: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**fields)


class Scripted:
    """An inverter that finds what it is told, call by call."""

    def __init__(self, *found: list[RecoveredTrigger]) -> None:
        self.found = list(found)

    def fit(self, *_: object, **__: object) -> list[RecoveredTrigger]:
        return self.found.pop(0)


class Corner(nn.Module):
    """Says 3 where the first pixel is as bright as this, else 0."""

    def __init__(self, bright: float) -> None:
        super().__init__()
        self.bright = bright

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hit = images[:, 0, 0, 0] >= self.bright
        return nn.functional.one_hot(torch.where(hit, 3, 0), 10).float()


def lift(images: torch.Tensor) -> torch.Tensor:
    return (0.9 * images + 0.1).clamp(0, 1)  # all pixels by a little


def corner(images: torch.Tensor) -> torch.Tensor:
    changed = images.clone()
    changed[:, :, 0, 0] = 0.5
    return changed


@pytest.mark.parametrize(
    ("new", "passed"),
    [
        ([corner], False),
        ([torch.ones_like], None),
        # Whichever comes first: one that does nothing, or one that is larger, hides no other.
        ([lift, corner], False),
        ([torch.ones_like, corner], False),
        ([lift, torch.ones_like], None),
    ],
)
def test_a_new_trigger_fails_a_repair_only_if_it_is_no_larger(
    planted: Planted, new: list[Callable[[torch.Tensor], torch.Tensor]], passed: bool | None
) -> None:
    again = [RecoveredTrigger(trigger, 3) for trigger in new]
    one = InvertAgain(inverter=Scripted([RecoveredTrigger(lift, 3)], again))
    found = one.audit(Corner(0.05), Corner(0.4), planted.data, Rng(1))
    assert found.values["recovered trigger, repaired network"].value == 0
    assert found.values["new trigger, repaired network"].value == 1
    assert found.passed is passed
