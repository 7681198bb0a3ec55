"""Every defense takes a few steps on every family of networks, and what it returns can be saved.

Thirty-two by thirty-two color noise, two images a class, one pruning round and one epoch: enough to
meet biases, residual sums, depthwise convolutions, squeeze-excite, dropout and stochastic depth.
"""

import copy

import pytest
import torch

from excise import registry
from excise.inversion import Oracle
from excise.models import (
    apply_edits,
    build_model,
    load_bundle,
    own_tensors,
    save_bundle,
    trace,
)
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
from excise.types import DefenderData, Edit, LabelledImages

# Two steps of each stage, and no stop before them.
STEPS = {
    "none": {},
    "grad-prune": {"max_accuracy_drop": 1.0, "patience": 1, "tune_patience": 1,
                   "max_tune_epochs": 1},
}  # fmt: skip
ARCHS = [
    "excise:preactresnet18,width=4",
    "excise:vgg19_bn,width=4",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b3",
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


def saved_and_loaded(model, directory, data):
    """The bundle holds every bit of it."""
    save_bundle(directory, model, {})
    loaded, _ = load_bundle(directory)
    assert differences(loaded, model) == []
    with torch.no_grad():
        assert torch.equal(loaded(data.train.images), model(data.train.images))


def test_two_steps(network, method, data, tmp_path):
    before = Snapshot(network)
    rows = []
    with nothing_global_changes():
        result = method.repair(network, data, Rng(5), on_round=rows.append)
    assert before.changes() == []
    assert {row["stage"] for row in rows} == {row["stage"] for row in result.history}
    assert shared_storage(network, result.model) == []
    assert [(p.dtype, p.shape) for p in network.parameters()] == [
        (p.dtype, p.shape) for p in result.model.parameters()
    ]
    saved_and_loaded(result.model, tmp_path / "repaired", data)

    # On noise no cut need be an improvement, so that none may be left: each that was tried can be
    # made again, and the network that is left goes to disk and back too.
    cuts = tuple(
        Edit("silence", row["layer"], row["index"], row["round"])
        for row in result.history
        if row["stage"] == "prune"
    )
    assert set(result.edits) <= set(cuts)
    units = trace(network, data.train.images)
    pruned = copy.deepcopy(network).eval()
    apply_edits(pruned, cuts, units)
    assert bool(differences(network, pruned)) == bool(cuts)
    for unit in units:
        for index in (cut.index for cut in cuts if cut.layer == unit.layer):
            assert not any(tensor[index].any() for tensor in own_tensors(pruned, unit))
    saved_and_loaded(pruned, tmp_path / "pruned", data)

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
