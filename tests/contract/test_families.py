"""Every defense takes a few steps on every family of networks, and what it returns can be saved.

Thirty-two by thirty-two color noise, two images a class, one pruning round and one epoch: enough to
meet biases, residual sums, depthwise convolutions, squeeze-excite, dropout and stochastic depth.
"""

import copy

import pytest
import torch
from tests.contract.settings import DEFENSES, built

from excise import registry
from excise.errors import ModelError
from excise.models import (
    additions,
    apply_edits,
    build_model,
    load_bundle,
    save_bundle,
    trace,
    zeroed,
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

ARCHS = [
    # Not narrower: without AVX-512, torch 2.14 writes beyond its memory in the backward
    # pass of a strided 1×1 convolution of fewer than 8 channels in channels-last order.
    "excise:preactresnet18,width=8",
    "excise:vgg19_bn,width=4",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b3",
    "timm:vit_tiny_patch16_224,img_size=32,patch_size=8,depth=2,embed_dim=24",
]
TRIGGER = Patch(torch.ones(3, 3, 3), torch.ones(3, 3, dtype=torch.bool), -3, -3)


@pytest.fixture(params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture
def network(arch):
    return build_model(arch, classes=3, input_size=(32, 32), rng=Rng(0))


@pytest.fixture(params=registry.rows("defense"), ids=lambda row: row.name)
def name(request):
    if request.param.name not in DEFENSES:
        pytest.fail(f"{request.param.name} is new: give it an entry in tests/contract/settings.py")
    return request.param.name


@pytest.fixture
def method(name):
    return built(name, TRIGGER, DEFENSES[name].steps)


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


def plain(named):
    """Type and shape of every tensor, under the name it had before something was added."""
    return {name.replace(".inner.", "."): (t.dtype, t.shape) for name, t in named}


def test_two_steps(arch, network, name, method, data, tmp_path):
    before = Snapshot(network)
    if arch in DEFENSES[name].refuses:
        with (
            nothing_global_changes(),
            pytest.raises(ModelError, match=DEFENSES[name].refuses[arch]),
        ):
            method.repair(network, data, Rng(5))
        assert before.changes() == []
        return
    rows = []
    with nothing_global_changes():
        result = method.repair(network, data, Rng(5), on_round=rows.append)
    assert before.changes() == []
    assert {row["stage"] for row in rows} == {row["stage"] for row in result.history}
    assert shared_storage(network, result.model) == []
    given, repaired = (plain(net.named_parameters()) for net in (network, result.model))
    assert given.items() <= repaired.items()
    assert bool(repaired.keys() - given.keys()) <= bool(additions(result.model))
    saved_and_loaded(result.model, tmp_path / "repaired", data)

    # On noise no cut need be an improvement, so that none may be left: each that was tried can be
    # made again, and the network that is left goes to disk and back too.
    cuts = tuple(
        Edit(row.get("kind", "silence"), row["layer"], row["index"], row["round"])
        for row in result.history
        if row["stage"] == "prune" and "layer" in row
    ) or tuple(edit for edit in result.edits if edit.index is not None)
    assert {e for e in result.edits if e.index is not None} <= set(cuts)
    units = trace(network, data.train.images)
    pruned = copy.deepcopy(network).eval()
    apply_edits(pruned, cuts, units)
    assert not any(t.index_select(d, i).any() for t, d, i in zeroed(pruned, cuts, units))
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
