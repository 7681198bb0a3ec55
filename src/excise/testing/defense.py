"""The contract of a defense: a network and the defender's images become a repaired network."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from excise.data import defender_data
from excise.errors import DataError, ModelError
from excise.models import additions, apply_edits, trace, zeroed
from excise.models.additions import ADDITIONS
from excise.seeding import Rng
from excise.testing.guards import (
    Interruption,
    Snapshot,
    differences,
    interrupt_at,
    nothing_global_changes,
    rebuilt_from_spec,
    shared_storage,
)
from excise.testing.planted import (
    DropoutNet,
    Planted,
    linear_network,
    plain_network,
    planted_digits,
    shared_folder,
)
from excise.types import DefenderData, Defense, Repair, Row

__all__ = ["MAX_ACCURACY_DROP", "MAX_ASR", "MIN_RA", "DefenseContract"]

# What a method that claims to remove backdoors must reach on the planted network. Chosen before
# any method was run there, and not to be changed for one: the weakest result a reader would still
# call "the backdoor is gone, the network is whole".
MAX_ASR = 0.20
"""Highest attack success rate after the repair; it was above 0.9 before."""
MIN_RA = 0.50
"""Lowest share of triggered images read right after the repair; nearly none were before."""
MAX_ACCURACY_DROP = 0.10
"""Largest loss of clean accuracy, absolute."""


class DefenseContract:
    """What every defense promises. Override :meth:`method`; the rest is tests.

    Override also, where it applies: :meth:`full`, :meth:`without_tuning`,
    :meth:`needs_validation`, :meth:`needs_convolution`, :meth:`needs_batch_norm`,
    :meth:`lowers_asr`.
    """

    @pytest.fixture
    def method(self) -> Defense:
        """Return the defense, with settings that finish in about a second on 8 × 8 digits."""
        pytest.fail("override the fixture `method`")

    @pytest.fixture
    def full(self, method: Defense) -> Defense:
        """Return the defense as a user of 50 images a class runs it.

        That is how it has to remove the backdoor; by default it is :meth:`method`.
        """
        return method

    @pytest.fixture
    def without_tuning(self, method: Defense) -> Defense | None:
        """Return the defense with everything switched off but its edits; None if it cannot.

        By default a field ``tune_patience`` is set to 0.
        """
        known = {field.name for field in dataclasses.fields(cast(Any, method))}
        if "tune_patience" not in known:
            return None
        return cast(Defense, dataclasses.replace(cast(Any, method), tune_patience=0))

    @pytest.fixture
    def needs_validation(self) -> bool:
        """Return whether the defense refuses data without validation images."""
        return True

    @pytest.fixture
    def needs_convolution(self) -> bool:
        """Return whether the defense refuses a network without convolutions."""
        return True

    @pytest.fixture
    def needs_batch_norm(self) -> bool:
        """Return whether the defense refuses a network without batch norm."""
        return False

    @pytest.fixture
    def lowers_asr(self) -> bool | str:
        """Return whether the defense must remove the planted backdoor, or in words why not."""
        return True

    @pytest.fixture
    def planted(self, tmp_path_factory: pytest.TempPathFactory) -> Planted:
        """Return the tiny planted network and the images around it."""
        return planted_digits(shared_folder(tmp_path_factory))

    @pytest.mark.parametrize("state", ["eval", "train", "mixed", "used"])
    def test_it_leaves_what_it_was_given_as_it_was(
        self, method: Defense, planted: Planted, state: str
    ) -> None:
        """The network bit for bit, its flags, gradients and hooks; the images; all generators."""
        model = in_state(planted.network(), state)
        before, images = Snapshot(model), planted.data.everything().fingerprint()
        with nothing_global_changes():
            repair(method, model, planted.data)
        assert before.changes() == []
        assert planted.data.everything().fingerprint() == images

    def test_it_leaves_what_it_was_given_as_it_was_when_interrupted(
        self, method: Defense, planted: Planted
    ) -> None:
        """An exception out of the progress callback, in each stage, leaves no trace."""
        stages: list[str] = []
        method.repair(
            planted.network(),
            planted.data,
            Rng(3),
            on_round=lambda row: stages.append(str(row.get("stage"))),
        )
        assert stages, "call on_round after every round: it is how progress reaches a person"
        model = in_state(planted.network(), "mixed")
        before = Snapshot(model)
        for stage in dict.fromkeys(stages):
            at = stages.index(stage) + 1
            with nothing_global_changes(), pytest.raises(Interruption):
                method.repair(model, planted.data, Rng(3), on_round=interrupt_at(at))
            assert before.changes() == []

    def test_what_it_returns_is_ready_and_its_own(self, method: Defense, planted: Planted) -> None:
        """In eval mode, same layers and flags, no hooks and gradients; no tensor is shared.

        What was added to a layer, and its edits say so, may be there beside them.
        """
        model = planted.network()
        result = repair(method, model, planted.data)
        repaired = result.model
        assert not any(module.training for module in repaired.modules())
        assert shared_storage(model, repaired) == []
        assert [name for name, p in repaired.named_parameters() if p.grad is not None] == []
        assert _flags(model).items() <= _flags(repaired).items()
        added = {(kind, layer) for kind, layer in additions(repaired)}
        assert added == {(e.kind, e.layer) for e in result.edits if e.kind in ADDITIONS}
        assert bool(_flags(repaired).keys() - _flags(model).keys()) <= bool(added)
        assert all(number == 0 for number in _hooks(repaired))
        images = planted.test.subset(torch.arange(10)).floats()
        with torch.no_grad():
            assert repaired(images).shape == (10, planted.data.num_classes)
        copy.deepcopy(repaired)

    @pytest.mark.parametrize("network", ["planted", "dropout"])
    def test_the_same_seed_gives_the_same_repair(
        self, method: Defense, planted: Planted, network: str
    ) -> None:
        """Weights, edits and story, also for a network that draws from torch's generator."""
        model = planted.network() if network == "planted" else dropout_network(planted)
        with nothing_global_changes():
            first = repair(method, model, planted.data)
        torch.rand(7)  # a caller's own draws change nothing
        second = repair(method, model, planted.data)
        assert differences(first.model, second.model) == []
        assert _story(first) == _story(second)

    @pytest.mark.parametrize("state", ["train", "mixed", "used", "frozen", "no_grad"])
    def test_the_callers_modes_change_nothing(
        self, method: Defense, planted: Planted, state: str
    ) -> None:
        """Given in train mode, frozen, or under no_grad, the network is repaired the same."""
        plain = repair(method, planted.network(), planted.data)
        model = in_state(planted.network(), state)
        with torch.set_grad_enabled(state != "no_grad"):
            other = repair(method, model, planted.data)
        assert differences(plain.model, other.model) == []
        assert _story(plain) == _story(other)
        assert not any(module.training for module in other.model.modules())
        assert _flags(model).items() <= _flags(other.model).items()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_type_and_device_are_kept(
        self, method: Defense, planted: Planted, dtype: torch.dtype, device: str
    ) -> None:
        """The repaired network computes in the given one's type, where it lies."""
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        model = planted.network().to(device, dtype)
        repaired = repair(method, model, planted.data.to(device)).model
        given, returned = _tensors(model), _tensors(repaired)
        for name, old in given.items():
            new = returned[name]
            assert (new.dtype, new.device, new.shape) == (old.dtype, old.device, old.shape), name
        for name in returned.keys() - given.keys():
            if returned[name].is_floating_point():
                assert returned[name].dtype == dtype, name

    def test_its_edits_build_what_it_pruned(
        self, planted: Planted, without_tuning: Defense | None
    ) -> None:
        """Replayed on the given network, the edits alone give the pruned network."""
        if without_tuning is None:
            pytest.skip("the defense has no field tune_patience: override without_tuning")
        model = planted.network()
        result = repair(without_tuning, model, planted.data)
        rebuilt = planted.network().eval()
        apply_edits(rebuilt, result.edits, trace(rebuilt, planted.data.train.floats()[:1]))
        assert differences(rebuilt, result.model) == []
        assert result.edits or differences(model, result.model) == []
        assert loud(result, planted) == []

    def test_what_its_edits_name_is_silent(self, method: Defense, planted: Planted) -> None:
        """Each edit names what it changed once, and what it zeroed is zero in what comes back."""
        result = repair(method, planted.network(), planted.data)
        named = [(edit.kind, edit.layer, edit.index) for edit in result.edits]
        assert len(set(named)) == len(named)
        assert [edit.round for edit in result.edits] == sorted(e.round for e in result.edits)
        assert all(edit.round >= 1 for edit in result.edits)
        assert loud(result, planted) == []

    def test_its_story_is_json(self, method: Defense, planted: Planted) -> None:
        """History, notes, assumptions and times go into the record; a row names its stage."""
        rows: list[Row] = []
        result = method.repair(planted.network(), planted.data, Rng(3), on_round=rows.append)
        json.dumps([dict(row) for row in result.history], allow_nan=False)
        json.dumps([dict(result.seconds), result.assumed, result.notes], allow_nan=False)
        assert all(isinstance(row["stage"], str) for row in result.history)
        reported = [dict(row) for row in rows]
        assert [row for row in result.history if dict(row) not in reported] == []
        assert all(note.endswith(".") for note in result.notes)

    def test_its_spec_builds_it_again(self, method: Defense) -> None:
        """What stands in the record is enough to run it again."""
        assert rebuilt_from_spec("defense", method) == method

    def test_without_validation_images(
        self, method: Defense, planted: Planted, needs_validation: bool
    ) -> None:
        """A defense that decides by validation images says so when there are none."""
        data = DefenderData(planted.data.train, None, planted.data.pool)
        if not needs_validation:
            repair(method, planted.network(), data)
            return
        with pytest.raises(DataError, match=r"expected validation images for .* at least 2 images"):
            repair(method, planted.network(), data)

    def test_two_images_a_class_are_enough(self, method: Defense, planted: Planted) -> None:
        """One to learn from and one to decide by: the smallest SPC there is."""
        data = defender_data(planted.pool, spc=2, rng=Rng(0))
        repair(method, planted.network(), data)

    def test_a_gradient_that_is_not_finite(self, method: Defense, planted: Planted) -> None:
        """Where logits are finite and gradients are not, no NaN comes back as a repair."""
        model = kinked(planted.network()).eval()
        result = repair(method, model, planted.data)
        assert all(bool(tensor.isfinite().all()) for tensor in _tensors(result.model).values())

    def test_without_convolutions(
        self, method: Defense, planted: Planted, needs_convolution: bool
    ) -> None:
        """A defense that prunes filters says so when there are none."""
        model = linear_network(64, planted.data.num_classes).eval()
        before = Snapshot(model)
        if not needs_convolution:
            repair(method, model, planted.data)
        else:
            with pytest.raises(ModelError, match=r"expected a network with \w+"):
                repair(method, model, planted.data)
        assert before.changes() == []

    def test_without_batch_norm(
        self, method: Defense, planted: Planted, needs_batch_norm: bool
    ) -> None:
        """A defense that works on batch norms says so when there are none."""
        model = plain_network(planted.data.num_classes)
        before = Snapshot(model)
        if not needs_batch_norm:
            repair(method, model, planted.data)
        else:
            with pytest.raises(ModelError, match="expected a network with batch norm"):
                repair(method, model, planted.data)
        assert before.changes() == []

    def test_it_removes_the_planted_backdoor(
        self, full: Defense, planted: Planted, lowers_asr: bool | str
    ) -> None:
        """ASR falls, RA rises, ACC holds. Limits are fixed; no setting was chosen to meet them."""
        if isinstance(lowers_asr, str):
            pytest.skip(f"need not lower ASR here: {lowers_asr}")
        assert lowers_asr, "say in the registry row that it lowers ASR (True), or why not (words)"
        model = planted.network()
        acc, asr, _ = rates(planted, model)
        assert asr > 0.9, "the backdoor never took: the fixture is broken"
        repaired_acc, repaired_asr, repaired_ra = rates(
            planted, repair(full, model, planted.plenty).model
        )
        assert repaired_asr <= MAX_ASR
        assert repaired_ra >= MIN_RA
        assert acc - repaired_acc <= MAX_ACCURACY_DROP


def loud(result: Repair, planted: Planted) -> list[str]:
    """Return the edits that are not kept: some number that they zeroed is not zero."""
    units = trace(planted.network(), planted.data.train.floats()[:1])
    return [
        str(edit)
        for edit in result.edits
        if any(t.index_select(d, i).any() for t, d, i in zeroed(result.model, (edit,), units))
    ]


def rates(planted: Planted, model: nn.Module) -> tuple[float, float, float]:
    """Return ACC, ASR and RA of a network on the test images."""
    measured = planted.measure(model)
    values = [rate.value if rate else None for rate in (measured.acc, measured.asr, measured.ra)]
    acc, asr, ra = (float("nan") if value is None else value for value in values)
    return acc, asr, ra


def repair(method: Defense, model: nn.Module, data: DefenderData, seed: int = 3) -> Repair:
    """Return what the defense makes of a network."""
    result = method.repair(model, data, Rng(seed))
    assert isinstance(result, Repair)
    return result


def in_state(model: nn.Module, state: str) -> nn.Module:
    """Return the network as callers may hold it."""
    model.train(state in {"train", "mixed"})
    if state == "mixed":  # batch norm frozen while the rest trains, half of the weights fixed
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for parameter in list(model.parameters())[::2]:
            parameter.requires_grad_(False)
    if state == "frozen":
        model.requires_grad_(False)
    if state == "used":  # gradients left over, and somebody's hook
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.register_forward_hook(_somebodys_hook)
    return model


class Kink(nn.Module):
    """Hands on what it is given; its slope is not a number."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features ``(n, f)``."""
        # √z at z = 0 has no finite slope, as a standard deviation of equal values has none.
        return features + (features * 0).square().sum(1, keepdim=True).sqrt()


def kinked(model: nn.Module) -> nn.Module:
    """Return the network, in place, with a kink before its last linear layer."""
    *_, name = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    parent, _, own = name.rpartition(".")
    layer = model.get_submodule(name)
    setattr(model.get_submodule(parent), own, nn.Sequential(Kink(), layer))
    return model


def _somebodys_hook(module: nn.Module, given: Any, output: Any) -> None:
    """Watch and change nothing."""


def dropout_network(planted: Planted) -> nn.Module:
    """Return a network with dropout that knows digits a little: eight steps of training."""
    with Rng(0).scope("dropout"):
        model = DropoutNet(planted.data.num_classes).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        images, labels = planted.data.train.floats(), planted.data.train.labels
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
    return model.eval()


def _flags(model: nn.Module) -> dict[str, bool]:
    return {_plain(name): p.requires_grad for name, p in model.named_parameters()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {_plain(name): tensor for name, tensor in named}


def _plain(name: str) -> str:
    """Return a tensor's name as it was before something was added to its layer."""
    return name.replace(".inner.", ".")


def _hooks(model: nn.Module) -> list[int]:
    return [
        len(value)
        for module in model.modules()
        for key, value in vars(module).items()
        if key.endswith("_hooks")
    ]


def _story(result: Repair) -> tuple[Any, ...]:
    """Return everything a repair says but how long it took."""
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    return result.edits, history, result.assumed, result.notes
