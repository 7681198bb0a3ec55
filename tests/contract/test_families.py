"""Every defense takes a few steps on every family of networks, and what it returns can be saved.

Thirty-two by thirty-two color noise, two images a class, one pruning round and one epoch: enough to
meet biases, residual sums, depthwise convolutions, squeeze-excite, dropout and stochastic depth.
"""

import pytest
import torch

from excise import registry
from excise.inversion import Oracle
from excise.models import build_model, load_bundle, own_tensors, save_bundle, trace
from excise.seeding import Rng
from excise.testing import (
    Interruption,
    Snapshot,
    differences,
    interrupt_at,
    nothing_global_changes,
    shared_storage,
)
from excise.triggers import Patch
from excise.types import DefenderData, LabelledImages

# Two steps of each stage, and no stop before them.
STEPS = {
    "grad-prune": {"max_accuracy_drop": 1.0, "patience": 1, "tune_patience": 1,
                   "max_tune_epochs": 1},
}  # fmt: skip
ARCHS = [
    "excise:preactresnet18,width=4",
    "excise:vgg19_bn,width=4",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_large",
    pytest.param("torchvision:efficientnet_b3", marks=pytest.mark.slow),
]
TRIGGER = Patch(torch.ones(3, 3, 3), torch.ones(3, 3, dtype=torch.bool), -3, -3)


@pytest.fixture(params=ARCHS)
def network(request):
    return build_model(request.param, classes=3, input_size=(32, 32), rng=Rng(0))


@pytest.fixture(params=registry.rows("defense"), ids=lambda row: row.name)
def method(request):
    row = request.param
    if row.name not in STEPS:
        pytest.fail(f"{row.name} is new: give it settings of two steps in STEPS, {__name__}")
    told = {}
    if "inverter" in {field["name"] for field in row.fields()}:
        told["inverter"] = Oracle(TRIGGER)
    return registry.build("defense", row.name, told | STEPS[row.name])


@pytest.fixture(scope="module")
def data():
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    every = LabelledImages(images, labels, ("a", "b", "c"))
    return DefenderData(every.subset(torch.arange(6)), every.subset(torch.arange(6, 12)), "noise")


def test_two_steps(network, method, data, tmp_path):
    before = Snapshot(network)
    rows = []
    with nothing_global_changes():
        result = method.repair(network, data, Rng(5), on_round=rows.append)
    assert before.changes() == []
    assert {row["stage"] for row in rows} == {row["stage"] for row in result.history}
    assert shared_storage(network, result.model) == []
    assert differences(network, result.model)
    units = {unit.layer: unit for unit in trace(network, data.train.images)}
    for edit in result.edits:
        for tensor in own_tensors(result.model, units[edit.layer]):
            assert not tensor[edit.index].any()

    save_bundle(tmp_path / "repaired", result.model, {})
    loaded, _ = load_bundle(tmp_path / "repaired")
    assert differences(loaded, result.model) == []
    with torch.no_grad():
        assert torch.equal(loaded(data.train.images), result.model(data.train.images))

    # Stopped in the middle, it leaves no trace either.
    with nothing_global_changes(), pytest.raises(Interruption):
        method.repair(network, data, Rng(5), on_round=interrupt_at(len(rows)))
    assert before.changes() == []


@pytest.mark.parametrize("arch", ["torchvision:mobilenet_v3_large"])
def test_the_same_seed_gives_the_same_repair_under_dropout(arch, method, data):
    network = build_model(arch, classes=3, input_size=(32, 32), rng=Rng(0))
    first = method.repair(network, data, Rng(5))
    torch.rand(3)
    second = method.repair(network, data, Rng(5))
    assert differences(first.model, second.model) == []
    assert first.edits == second.edits
