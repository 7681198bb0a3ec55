"""A suite that nothing can fail proves nothing: methods that break a promise must not pass."""

import contextlib
import copy
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from excise.attacks import BadNets, Victim
from excise.errors import DataError
from excise.seeding import Rng
from excise.testing import (
    AttackContract,
    DefenseContract,
    DirtyLabelContract,
    DrawnContract,
    InverterContract,
    Planted,
    ScannerContract,
    Snapshot,
    TriggerContract,
    differences,
    interrupt_at,
    nothing_global_changes,
    shared_storage,
)
from excise.triggers import Blend, Patch
from excise.types import (
    AllToOne,
    Backdoor,
    DefenderData,
    Diagnosis,
    Edit,
    Evidence,
    LabelledImages,
    RecoveredTrigger,
    Repair,
    ignore_round,
)

pytestmark = pytest.mark.fast


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 10)

    def forward(self, images):
        return self.linear(self.norm(self.conv(images)).relu().mean((2, 3)))


@pytest.fixture
def planted():
    """Not planted at all: for suites that must fail, any network will do."""
    with Rng(0).scope("tiny"):
        model = Tiny().eval()
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    every = LabelledImages(images, torch.arange(20) % 10, tuple("0123456789"))
    data = DefenderData(every.subset(torch.arange(10)), every.subset(torch.arange(10, 20)), "noise")
    trigger = Patch(torch.ones(1, 2, 2), torch.ones(2, 2, dtype=torch.bool), 0, 0)
    return Planted(model, Backdoor(trigger, AllToOne(3)), data, data, every, every)


def row(**figures):
    return {"stage": "prune", **figures}


@dataclass(frozen=True)
class Bad:
    """A defense that copies the network, and does one thing it must not."""

    sin: str = ""
    tune_patience: int = 10
    calls: list[int] = field(default_factory=list, compare=False)

    def repair(self, model, data, rng, *, on_round=ignore_round):
        repaired = copy.deepcopy(model).eval()
        history: list[dict[str, Any]] = [row(loss=1.0)]
        edits: tuple[Edit, ...] = ()
        notes: tuple[str, ...] = ()
        self.calls.append(1)
        match self.sin:
            case "writes into the given network":
                with torch.no_grad():
                    model.conv.weight[0, 0, 0, 0] += 1e-6
            case "moves its batch norm":
                model.norm.running_mean += 1e-6
            case "leaves it in train mode":
                model.train()
            case "leaves it in eval mode":
                model.eval()
            case "freezes it":
                model.requires_grad_(False)
            case "leaves a hook":
                model.conv.register_forward_hook(lambda *_: None)
            case "leaves a hook on a tensor":
                model.conv.weight.register_hook(lambda gradient: None)
            case "leaves gradients":
                model.linear.weight.grad = torch.zeros_like(model.linear.weight)
            case "replaces its forward":
                model.forward = model.forward
            case "swaps a layer":
                model.linear = copy.deepcopy(model.linear)
            case "writes into the images":
                data.train.images[0, 0, 0, 0] = 0.5
            case "draws from torch":
                with torch.no_grad():
                    repaired.conv.weight += torch.rand(()) * 1e-3
            case "draws from NumPy":
                np.random.rand()
            case "draws from random":
                random.random()
            case "returns the given network":
                repaired = model.eval()
            case "returns its tensors":
                repaired.conv = model.conv
            case "returns a view of its tensors":
                repaired.conv.weight = nn.Parameter(model.conv.weight.detach()[:])
            case "returns train mode":
                repaired.train()
            case "returns a mixed mode":
                repaired.norm.train()
            case "returns frozen weights":
                repaired.requires_grad_(False)
            case "returns gradients":
                repaired.linear.weight.grad = torch.ones_like(repaired.linear.weight)
            case "returns hooks":
                repaired.register_forward_hook(lambda *_: None)
            case "returns another type":
                repaired.half()
            case "counts its calls":
                with torch.no_grad():
                    repaired.conv.weight += len(self.calls)
            case "tells another story each time":
                history = [row(calls=len(self.calls))]
            case "lies about edits":
                edits = (Edit("silence", "conv", 0, 1),)
            case "hides edits":
                with torch.no_grad():
                    repaired.conv.weight[0] = 0
            case "cuts twice":
                edits = (Edit("silence", "conv", 0, 1), Edit("silence", "conv", 0, 2))
                with torch.no_grad():
                    for tensor in (*repaired.conv.parameters(), *repaired.norm.parameters()):
                        tensor[0] = 0
            case "says NaN":
                history = [row(loss=float("nan"))]
            case "names no stage":
                history = [{"loss": 1.0}]
            case "keeps rows to itself":
                history = [row(loss=1.0), row(loss=2.0)]
            case "follows the caller's mode":
                with torch.no_grad():
                    repaired.conv.weight += float(model.training) + float(torch.is_grad_enabled())
            case "steps where the slope is not finite":
                repaired.requires_grad_(True)
                repaired(data.train.floats()).sum().backward()
                with torch.no_grad():
                    for parameter in repaired.parameters():
                        parameter -= 0.0 * parameter.grad
                        parameter.grad = None
            case "keeps silent":
                return Repair(repaired, (), tuple(history))
            case "swallows interruptions":
                try:
                    on_round(history[0])
                except Exception:
                    return Repair(repaired, (), ())
        on_round(history[0])
        return Repair(repaired, edits, tuple(history), notes=notes)


SINS = {
    "writes into the given network": "leaves_what_it_was_given_as_it_was",
    "moves its batch norm": "leaves_what_it_was_given_as_it_was",
    "leaves it in train mode": "leaves_what_it_was_given_as_it_was",
    "leaves it in eval mode": "leaves_what_it_was_given_as_it_was",
    "freezes it": "leaves_what_it_was_given_as_it_was",
    "leaves a hook": "leaves_what_it_was_given_as_it_was",
    "leaves a hook on a tensor": "leaves_what_it_was_given_as_it_was",
    "leaves gradients": "leaves_what_it_was_given_as_it_was",
    "replaces its forward": "leaves_what_it_was_given_as_it_was",
    "swaps a layer": "leaves_what_it_was_given_as_it_was",
    "writes into the images": "leaves_what_it_was_given_as_it_was",
    "draws from torch": "leaves_what_it_was_given_as_it_was",
    "draws from NumPy": "leaves_what_it_was_given_as_it_was",
    "draws from random": "leaves_what_it_was_given_as_it_was",
    "returns the given network": "returns_is_ready",
    "returns its tensors": "returns_is_ready",
    "returns a view of its tensors": "returns_is_ready",
    "returns train mode": "returns_is_ready",
    "returns a mixed mode": "returns_is_ready",
    "returns frozen weights": "returns_is_ready",
    "returns gradients": "returns_is_ready",
    "returns hooks": "returns_is_ready",
    "returns another type": "type_and_device",
    "counts its calls": "same_seed",
    "tells another story each time": "same_seed",
    "lies about edits": "edits",
    "hides edits": "edits",
    "cuts twice": "edits",
    "says NaN": "story",
    "names no stage": "story",
    "keeps rows to itself": "story",
    "follows the caller's mode": "modes",
    "steps where the slope is not finite": "gradient",
    "keeps silent": "interrupted",
    "swallows interruptions": "interrupted",
}


def check(which, method, planted):
    """Run the tests of the suite that a sin belongs to, as pytest would."""
    suite = DefenseContract()
    match which:
        case "leaves_what_it_was_given_as_it_was":
            for state in ("eval", "train", "mixed"):
                suite.test_it_leaves_what_it_was_given_as_it_was(method, planted, state)
        case "returns_is_ready":
            suite.test_what_it_returns_is_ready_and_its_own(method, planted)
        case "type_and_device":
            suite.test_type_and_device_are_kept(method, planted, torch.float32, "cpu")
        case "same_seed":
            suite.test_the_same_seed_gives_the_same_repair(method, planted, "planted")
        case "edits":
            suite.test_its_edits_build_what_it_pruned(planted, method)
            suite.test_what_its_edits_name_is_silent(method, planted)
        case "story":
            suite.test_its_story_is_json(method, planted)
        case "modes":
            for state in ("train", "no_grad"):
                suite.test_the_callers_modes_change_nothing(method, planted, state)
        case "gradient":
            suite.test_a_gradient_that_is_not_finite(method, planted)
        case "interrupted":
            suite.test_it_leaves_what_it_was_given_as_it_was_when_interrupted(method, planted)


@pytest.mark.parametrize("sin", SINS)
def test_a_defense_that_breaks_a_promise_fails(sin, planted):
    check(SINS[sin], Bad(), planted)  # without the sin it passes
    with pytest.raises((AssertionError, ValueError, KeyError, RuntimeError, pytest.fail.Exception)):
        check(SINS[sin], Bad(sin), planted)


def test_a_defense_without_effect_or_refusals_fails(planted):
    suite = DefenseContract()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        suite.test_without_validation_images(Bad(), planted, True)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        suite.test_without_convolutions(Bad(), planted, True)
    with pytest.raises(AssertionError, match="the backdoor never took"):
        suite.test_it_removes_the_planted_backdoor(Bad(), planted, True)
    with pytest.raises(AssertionError, match="say in the registry row"):
        suite.test_it_removes_the_planted_backdoor(Bad(), planted, False)
    with pytest.raises(pytest.skip.Exception, match="need not lower ASR here: it only counts"):
        suite.test_it_removes_the_planted_backdoor(Bad(), planted, "it only counts")


def test_a_defense_whose_spec_says_too_little_fails():
    @dataclass(frozen=True)
    class Forgetful:
        given: object = None

    with pytest.raises(AssertionError):
        DefenseContract().test_its_spec_builds_it_again(Forgetful(given=object()))


@pytest.mark.parametrize(
    ("suite", "fixture"),
    [
        (DefenseContract, "method"),
        (TriggerContract, "make"),
        (AttackContract, "attack"),
        (DirtyLabelContract, "make"),
        (InverterContract, "inverter"),
        (ScannerContract, "scanner"),
    ],
)
def test_a_suite_says_which_fixture_it_needs(suite, fixture):
    made = getattr(suite, fixture)
    with pytest.raises(pytest.fail.Exception, match=f"override the fixture `{fixture}`"):
        made._get_wrapped_function()(suite())


def images():
    made = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made[2], made[3] = 0, 1
    return made


def writes(x):
    x[:, :, 0, 0] = 1
    return x


def counts():
    calls: list[int] = []

    def trigger(x):
        calls.append(1)
        return (x + 0.01 * len(calls)).clamp(0, 1)

    return trigger


TRIGGERS = {
    "changes the shape": (lambda x: x[:, :, 1:], "shape_type"),
    "changes the type": (lambda x: x.float(), "shape_type"),
    "leaves the range": (lambda x: x + 0.5, "shape_type"),
    "writes into its input": (writes, "given_images"),
    "returns its input": (lambda x: x, "given_images"),
    "draws": (lambda x: (x + 0.1 * torch.rand_like(x)).clamp(0, 1), "pure"),
    "counts": (counts(), "pure"),
    "mixes the batch": (lambda x: x.roll(1, 0), "itself"),
    "uses the batch's mean": (lambda x: (x + x.mean() / 10).clamp(0, 1), "itself"),
    "minds the layout": (
        lambda x: (x * 0.5 if x.is_contiguous() else x * 0.25), "layout",
    ),
    "does nothing": (lambda x: x.clone(), "picture_file"),
    "is too faint": (lambda x: (x + 1e-4).clamp(0, 1), "picture_file"),
}  # fmt: skip


@pytest.mark.parametrize("sin", TRIGGERS)
def test_a_trigger_that_breaks_a_promise_fails(sin):
    suite = TriggerContract()
    trigger, which = TRIGGERS[sin]
    given = images() if which != "layout" else torch.rand(4, 3, 8, 8)
    # A picture file cannot carry 1e-4, unless a pixel lies just beside the edge of a step.
    given = given if sin != "is too faint" else given.mul(255).round().div(255)
    tests = {
        "shape_type": suite.test_it_keeps_shape_type_device_and_range,
        "given_images": suite.test_it_leaves_the_given_images_alone,
        "pure": suite.test_it_is_pure,
        "itself": suite.test_each_image_for_itself,
        "layout": suite.test_it_takes_any_layout,
        "picture_file": suite.test_a_picture_file_carries_it,
    }
    with pytest.raises(AssertionError):
        tests[which](trigger, given)


def test_a_trigger_that_does_not_come_back_fails(tmp_path, monkeypatch):
    trigger = Blend(torch.rand(1, 8, 8), 0.2)
    suite = TriggerContract()
    suite.test_it_goes_to_disk_and_back(trigger, images(), tmp_path)
    monkeypatch.setattr(
        "excise.testing.trigger.load_trigger", lambda path: replace(trigger, alpha=0.3)
    )
    with pytest.raises(AssertionError):
        suite.test_it_goes_to_disk_and_back(trigger, images(), tmp_path)


@dataclass(frozen=True)
class BadInverter:
    sin: str = ""

    def fit(self, model, data, rng, *, on_round=ignore_round):
        on_round(row())
        share = float(torch.rand(())) if self.sin == "draws" else 1.0
        if self.sin == "writes":
            model.train()
        fate = {"leaves the range": lambda x: x + 1, "counts": counts()}
        trigger = fate.get(self.sin, lambda x: share * (1 - x))
        rate = 1.5 if self.sin == "boasts" else float("nan") if self.sin == "NaN" else 0.9
        return [
            RecoveredTrigger(
                trigger, target=99 if self.sin == "misses" else 1, evidence=Evidence(rate)
            )
        ]


@pytest.mark.parametrize(
    ("sin", "test"),
    [
        ("writes", lambda s, m, p: s.test_it_leaves_the_given_network_as_it_was(m, p, False)),
        ("draws", lambda s, m, p: s.test_it_leaves_the_given_network_as_it_was(m, p, False)),
        ("leaves the range", InverterContract.test_what_it_recovers_are_triggers),
        ("counts", InverterContract.test_what_it_recovers_are_triggers),
        ("misses", InverterContract.test_its_evidence_is_json),
        ("boasts", InverterContract.test_its_evidence_is_json),
        ("NaN", InverterContract.test_its_evidence_is_json),
        ("draws", InverterContract.test_the_same_seed_recovers_the_same),
    ],
)
def test_an_inverter_that_breaks_a_promise_fails(sin, test, planted):
    suite = InverterContract()
    test(suite, BadInverter(), planted)
    suite.test_it_leaves_the_given_network_as_it_was_when_interrupted(BadInverter(), planted)
    with pytest.raises((AssertionError, ValueError)):
        test(suite, BadInverter(sin), planted)


@dataclass(frozen=True)
class BadScanner:
    sin: str = ""

    def scan(self, model, data, rng, *, on_round=ignore_round):
        calm = Diagnosis(False, 0.5, 1.0, (), (0.0,) * 10)
        alarm = Diagnosis(True, 2.0, 1.0, (3, 4), (*[0.0] * 3, 2.0, 1.0, *[0.0] * 5))
        stage = "scan"
        match self.sin:
            case "trains":
                model.norm.train()
            case "writes":
                model.norm.running_mean += 1e-6
            case "keeps silent":
                return alarm
            case "names no stage":
                stage = 1
            case "swallows interruptions":
                with contextlib.suppress(Exception):
                    on_round({"stage": stage})
                return alarm
        on_round({"stage": stage})
        match self.sin:
            case "contradicts itself":
                return replace(calm, backdoored=True, targets=(3,))
            case "names nobody":
                return replace(alarm, targets=())
            case "suspects without an alarm":
                return replace(calm, targets=(3,))
            case "names a class there is not":
                return replace(alarm, targets=(10,))
            case "names the second first":
                return replace(alarm, targets=(4, 3))
            case "forgets classes":
                return replace(calm, per_class=(0.0,) * 9)
            case "NaN":
                return replace(calm, per_class=(float("nan"),) * 10)
            case "tensors":
                return replace(calm, statistic=torch.tensor(0.5))
            case "draws":
                return replace(calm, statistic=float(torch.rand(()) * 0.9))
            case "asks for validation":
                data.held_out("it")
        return alarm


INTERRUPTED = ScannerContract.test_it_leaves_the_given_network_as_it_was_when_interrupted


@pytest.mark.parametrize(
    ("sin", "test"),
    [
        ("contradicts itself", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("names nobody", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("suspects without an alarm", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("names a class there is not", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("names the second first", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("forgets classes", ScannerContract.test_its_diagnosis_agrees_with_itself),
        ("NaN", ScannerContract.test_its_diagnosis_is_json),
        ("tensors", ScannerContract.test_its_diagnosis_is_json),
        ("names no stage", ScannerContract.test_its_diagnosis_is_json),
        ("keeps silent", INTERRUPTED),
        ("swallows interruptions", INTERRUPTED),
        ("asks for validation", ScannerContract.test_it_needs_no_validation_images),
    ],
)  # fmt: skip
def test_a_scanner_that_breaks_a_promise_fails(sin, test, planted):
    suite = ScannerContract()
    test(suite, BadScanner(), planted)
    with pytest.raises((AssertionError, TypeError, ValueError, DataError, pytest.fail.Exception)):
        test(suite, BadScanner(sin), planted)


@pytest.mark.parametrize(
    ("sin", "test"),
    [
        ("trains", ScannerContract.test_it_leaves_the_given_network_as_it_was),
        ("writes", ScannerContract.test_it_leaves_the_given_network_as_it_was),
        ("draws", ScannerContract.test_it_leaves_the_given_network_as_it_was),
        ("draws", ScannerContract.test_the_same_seed_gives_the_same_diagnosis),
    ],
)
def test_a_scanner_that_touches_what_it_must_not_fails(sin, test, planted):
    suite = ScannerContract()
    test(suite, BadScanner(), planted, "eval")
    with pytest.raises(AssertionError):
        test(suite, BadScanner(sin), planted, "eval")


@dataclass(frozen=True, kw_only=True)
class BadAttack:
    """Plants nothing quickly, and does one thing it must not."""

    sin: str = ""

    def plant(self, model, data, recipe, rng, *, checkpoints=None, on_round=ignore_round):
        noise = torch.rand(()) if self.sin == "draws" else torch.zeros(())
        with torch.no_grad():
            seed = 0 if self.sin == "is always the same" else rng.seed
            if self.sin != "trains nothing":
                model.body.linear.bias += 1 + seed + noise
        if self.sin == "writes into the images":
            data.images[0] = 0
        for epoch in range(0 if self.sin == "keeps silent" else recipe.epochs):
            on_round({"stage": "fit", "epoch": epoch + 1})
        index = torch.tensor([3, 3] if self.sin == "poisons twice" else [3, 500])
        index = index if self.sin in {"poisons twice", "poisons what is not there"} else index[:1]
        return Victim(model.train(self.sin == "returns train mode"), None, index)


ATTACK_SINS = {
    "trains nothing": AttackContract.test_it_plants,
    "keeps silent": AttackContract.test_it_plants,
    "poisons twice": AttackContract.test_it_plants,
    "poisons what is not there": AttackContract.test_it_plants,
    "returns train mode": AttackContract.test_it_plants,
    "writes into the images": AttackContract.test_it_leaves_the_clean_images_alone,
    "draws": AttackContract.test_the_same_seed_plants_the_same,
    "is always the same": AttackContract.test_another_seed_plants_another,
}


@pytest.fixture(scope="module")
def digits():
    return AttackContract.images._get_wrapped_function()(AttackContract())


@pytest.mark.parametrize("sin", ATTACK_SINS)
def test_an_attack_that_breaks_a_promise_fails(sin, digits):
    given = replace(digits, images=digits.images.clone())
    ATTACK_SINS[sin](AttackContract(), BadAttack(), given)
    with pytest.raises(AssertionError):
        ATTACK_SINS[sin](AttackContract(), BadAttack(sin=sin), given)


def test_an_attack_that_does_not_resume_fails(digits, tmp_path):
    with pytest.raises(AssertionError):
        AttackContract().test_an_interrupted_planting_goes_on(BadAttack(), digits, tmp_path)


class DrawnAndDirty(DrawnContract, DirtyLabelContract):
    pass


def tampered(sin):
    """BadNets, changed in one place."""

    class Tampered(BadNets):
        def trigger(self, shape, rng):
            return super().trigger(shape, Rng(0) if sin == "always the same place" else rng)

        def target_rule(self, num_classes, rng):
            if sin == "takes any target" and self.target is not None:
                return AllToOne(self.target)
            return super().target_rule(num_classes, rng)

        def poison_index(self, data, rule, rng):
            index = super().poison_index(data, rule, rng)
            return index[:-1] if sin == "one too few" else index

    return Tampered


@pytest.mark.parametrize(
    ("sin", "test"),
    [
        ("always the same place", DrawnContract.test_the_seed_draws_the_trigger),
        ("takes any target", DirtyLabelContract.test_a_target_that_is_no_class_is_refused),
        (
            "one too few",
            lambda suite, make, given: suite.test_the_ratio_is_kept_exactly(make, given, 0.1),
        ),
    ],
)
def test_a_poisoning_that_breaks_a_promise_fails(sin, test, digits):
    test(DrawnAndDirty(), BadNets, digits)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(DrawnAndDirty(), tampered(sin), digits)


def test_the_guards_name_what_changed():
    model = Tiny().train()
    snapshot = Snapshot(model)
    assert snapshot.changes() == []
    with torch.no_grad():
        model.conv.bias[1] = 7
    model.norm.eval()
    model.extra = nn.Linear(1, 1)
    changed = "\n".join(snapshot.changes())
    assert "value of conv.bias" in changed
    assert "training flag of 'norm'" in changed
    assert "module 'extra' is new" in changed
    del model.extra, model.linear
    assert "module 'linear' is gone" in "\n".join(snapshot.changes())


def test_equal_is_equal_to_the_last_bit_and_nan_equals_nan():
    one, other = Tiny(), Tiny()
    other.load_state_dict(one.state_dict())
    assert differences(one, other) == []
    assert shared_storage(one, other) == []
    with torch.no_grad():
        one.conv.bias[0] = other.conv.bias[0] = float("nan")
    assert differences(one, other) == []
    with torch.no_grad():
        other.norm.running_var[2] += 1e-7
        other.norm.running_var[1] *= 1 + 1e-6
    assert differences(one, other) == ["norm.running_var"]
    assert differences(one, other.double())
    assert shared_storage(one, one)


def test_interruptions_come_when_told():
    on_round = interrupt_at(2)
    on_round({})
    with pytest.raises(Exception, match="interrupted at call 2"):
        on_round({})


def test_global_switches_are_watched():
    with nothing_global_changes():
        pass
    with torch.enable_grad():  # puts the mode back
        guard = nothing_global_changes()
        guard.__enter__()
        torch.set_grad_enabled(False)
        with pytest.raises(AssertionError, match=r"changed for everybody: torch.is_grad_enabled"):
            guard.__exit__(None, None, None)
