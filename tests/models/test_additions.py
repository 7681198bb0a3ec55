"""What may be added to a layer: what it does, that it is saved, and what a hostile card gets."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from excise.errors import ModelError
from excise.models import (
    Clamped,
    Plugged,
    add,
    additions,
    apply_edits,
    build_model,
    copy_of,
    finished,
    load_bundle,
    save_bundle,
    trace,
    working_copy,
)
from excise.seeding import Rng
from excise.types import Edit

pytestmark = pytest.mark.fast

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network():
    return build_model("excise:vgg19_bn,width=4", classes=3, rng=Rng(0)).eval()


def logits(model):
    with torch.no_grad():
        return model(IMAGES)


def test_a_fresh_clamp_is_the_identity_and_a_set_one_bounds_every_channel(network):
    before = logits(network)
    clamp = add(network, "clamp", "body.features.1")
    assert isinstance(clamp, Clamped)
    assert torch.equal(logits(network), before)
    bounds = torch.tensor([0.1, 0.2, -0.1, 0.0])
    clamp.bound.copy_(bounds)
    out = clamp(torch.randn(2, 4, 5, 5))
    assert torch.equal(out.amax((0, 2, 3)), bounds)
    assert torch.equal(Clamped(nn.Linear(2, 2)).bound, torch.full((2,), torch.finfo().max))
    assert Clamped(nn.Linear(2, 3))(torch.rand(5, 2)).shape == (5, 3)


def test_a_fresh_plug_changes_next_to_nothing(network):
    before = logits(network)
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        plug = add(network, "plug", "body.features.3")
        assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(plug, Plugged)
    assert not any(module.training for module in network.modules())
    assert float((logits(network) - before).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_addition_has_the_type_of_its_layer(network, dtype):
    network.to(dtype)
    add(network, "plug", "body.features.3")
    add(network, "clamp", "body.features.1")
    assert additions(network) == [("clamp", "body.features.1"), ("plug", "body.features.3")]
    assert {t.dtype for t in network.state_dict().values() if t.is_floating_point()} == {dtype}


def test_what_was_added_is_saved_and_loaded_to_the_last_bit(network, tmp_path):
    plug, clamp = add(network, "plug", "body.features.3"), add(network, "clamp", "body.features.1")
    with torch.no_grad():
        plug.conv.weight.add_(0.1)
        plug.norm.running_var.fill_(0.7)
        clamp.bound.fill_(0.05)
    save_bundle(tmp_path / "b", network, {"note": "changed"})
    loaded, card = load_bundle(tmp_path / "b")
    assert card["additions"] == [["clamp", "features.1"], ["plug", "features.3"]]
    assert additions(loaded) == additions(network)
    assert torch.equal(logits(loaded), logits(network))
    # What is loaded can be saved again, and the card of a network without additions names none.
    save_bundle(tmp_path / "again", loaded, card)
    assert torch.equal(logits(load_bundle(tmp_path / "again")[0]), logits(network))


def test_a_plain_network_s_card_names_no_additions(network, tmp_path):
    save_bundle(tmp_path / "b", network, {})
    assert "additions" not in json.loads((tmp_path / "b" / "card.json").read_text())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([["warp", "features.1"]], r"expected a clamp or a plug, got 'warp'"),
        ([["clamp", "nowhere"]], r"the tensors of excise:vgg19_bn"),
        ([["clamp", "features.1"], ["plug", "features.1"]], r"nothing was added yet"),
        ([["clamp", "features.4"]], r"the tensors of excise:vgg19_bn"),
        ("clamp", r"additions of .* to be right"),
        ([["clamp"]], r"to be right"),
        ([], r"the tensors of excise:vgg19_bn"),
    ],
)  # fmt: skip
def test_a_card_that_names_other_additions(network, tmp_path, said, message):
    add(network, "clamp", "body.features.1")
    save_bundle(tmp_path / "b", network, {})
    path = tmp_path / "b" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"additions": said}))
    with pytest.raises(ModelError, match=message):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([["clamp", "features.1"]], r"the tensors of excise:vgg19_bn"),
        ([["clamp", "nowhere"]], r"expected a layer of the model, got 'nowhere'"),
        ([["clamp", ""]], r"expected a layer of the model, got ''"),
        ([["clamp", "features.2"]], r"a layer with weights, got ReLU"),
        ([["plug", "features"]], r"the tensors of excise:vgg19_bn"),
    ],
)
def test_a_card_that_names_additions_without_weights(network, tmp_path, said, message):
    save_bundle(tmp_path / "b", network, {})
    path = tmp_path / "b" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"additions": said}))
    with pytest.raises(ModelError, match=message):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize("change", ["missing", "longer"])
def test_weights_that_do_not_fit_what_was_added(network, tmp_path, change):
    add(network, "clamp", "body.features.1")
    save_bundle(tmp_path / "b", network, {})
    path = tmp_path / "b" / "model.safetensors"
    state = load_file(path)
    bound = state.pop("features.1.bound")
    if change == "longer":
        state["features.1.bound"] = torch.cat([bound, bound])
    save_file(state, path)
    got = {"missing": "got none", "longer": r"got \(8,\)"}[change]
    with pytest.raises(ModelError, match=rf"was added: \(4,\) for features.1.bound, {got}"):
        load_bundle(tmp_path / "b")


def test_an_addition_of_a_layer_that_cannot_take_it(network):
    add(network, "clamp", "body.features.1")
    for layer in ("body.features.1", "body.features.1.inner"):
        with pytest.raises(ModelError, match="to which nothing was added yet"):
            add(network, "plug", layer)
    with pytest.raises(ModelError, match=r"a layer that can take a plug.*got Linear"):
        add(network, "plug", "body.classifier")


def test_edits_add_again(network):
    units = trace(network, IMAGES)
    again = copy_of(network)
    edits = (
        Edit("silence", "body.features.0", 1, 1),
        Edit("clamp", "body.features.4", None, 2),
        Edit("plug", "body.features.7", None, 2),
    )
    apply_edits(again, edits, units)
    assert additions(again) == [("clamp", "body.features.4"), ("plug", "body.features.7")]


def test_a_working_copy_comes_back_as_the_given_network_was(network):
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    network.train()
    worked = working_copy(network)
    assert all(p.requires_grad for p in worked.parameters())
    assert not worked.training
    assert network.training
    add(worked, "plug", "body.features.3")
    worked.train()
    logits_sum = worked(IMAGES).sum()
    logits_sum.backward()
    back = finished(worked, network)
    flags = {n.replace(".inner.", "."): p.requires_grad for n, p in back.named_parameters()}
    assert {n: p.requires_grad for n, p in network.named_parameters()}.items() <= flags.items()
    assert flags["body.features.3.conv.weight"]
    assert all(p.grad is None for p in back.parameters())
    assert not any(module.training for module in back.modules())
