"""What silencing zeroes, that it replays, and that a mask holds it while the rest trains."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from excise.errors import ModelError
from excise.models import (
    Mask,
    Unit,
    apply_edits,
    build_model,
    convolutions,
    copy_of,
    in_mode,
    own_tensors,
    silence,
    trace,
    zeroed,
)
from excise.types import Edit, LabelledImages

pytestmark = pytest.mark.fast


@pytest.fixture
def model():
    network = build_model("excise:vgg19_bn,width=2", classes=3)
    # Fresh batch norms have β = 0: give every number a value that silencing has to change.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*network.parameters(), *(b for b in network.buffers() if b.ndim)):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return network.eval()


@pytest.fixture
def units(model):
    return trace(model, torch.rand(1, 3, 32, 32))


def norm(gamma, beta):
    layer = nn.BatchNorm2d(1).eval()
    with torch.no_grad():
        layer.weight.fill_(gamma)
        layer.bias.fill_(beta)
        layer.running_mean.fill_(1)
        layer.running_var.fill_(3)
    return layer


@pytest.mark.parametrize(
    ("gamma", "beta", "expected"), [(2.0, 0.5, -0.6547), (0.0, 0.5, 0.5), (0.0, 0.0, 0.0)]
)
def test_what_batch_norm_makes_of_a_zeroed_filter(gamma, beta, expected):
    output = norm(gamma, beta)(torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(output, torch.full((1, 1, 2, 2), expected), atol=5e-5, rtol=0)


def output_of(model, layer, images):
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("training", [True, False])
def test_a_silenced_channel_is_zero_after_its_owner_for_any_input(model, units, training):
    unit = units[3]
    silence(model, unit, [1, 3])
    with in_mode(model, training=training):
        out = output_of(model, unit.owner, torch.randn(4, 3, 32, 32))
    assert torch.equal(out[:, [1, 3]], torch.zeros_like(out[:, [1, 3]]))
    assert (out[:, [0, 2]] != 0).any()


def changed(before, after):
    """Return where tensors differ: {name: rows}."""
    return {
        name: sorted({int(row) for row in (t != after[name]).nonzero()[:, 0]})
        for name, t in before.items()
        if not torch.equal(t, after[name])
    }


def test_nothing_else_changes(model, units):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    silence(model, units[0], 1)
    after = model.state_dict()
    names = ["features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"]
    assert changed(before, after) == {f"body.{name}": [1] for name in names}
    assert all(not after[f"body.{name}"][1].any() for name in names)
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_own_tensors(model, units):
    shapes = [tuple(t.shape) for t in own_tensors(model, units[0])]
    assert shapes == [(2, 3, 3, 3), (2,), (2,), (2,)]
    bare = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False))
    assert len(own_tensors(bare, Unit("0", 3, None, False))) == 1


@pytest.mark.parametrize("filters", [[0, 2], (0, 2), torch.tensor([0, 2])])
def test_several_filters_in_any_form(model, units, filters):
    silence(model, units[2], filters)
    kept = own_tensors(model, units[2])[0].flatten(1).any(1)
    assert kept.tolist() == [False, True, False, True]


def test_several_units_at_once(model, units):
    silence(model, [units[2], units[0], units[2]], [1, 0, 3])
    assert own_tensors(model, units[2])[1].ne(0).tolist() == [True, False, True, False]
    assert own_tensors(model, units[0])[1].ne(0).tolist() == [False, True]


def edits(units, *pairs):
    return tuple(Edit("silence", units[u].layer, f, i + 1) for i, (u, f) in enumerate(pairs))


def test_edits_replay(model, units):
    by_hand, replayed = copy_of(model), copy_of(model)
    silence(by_hand, units[1], [0, 1])
    silence(by_hand, units[5], 2)
    apply_edits(replayed, edits(units, (5, 2), (1, 1), (1, 0)), units)
    again = replayed.state_dict()
    assert all(torch.equal(t, again[name]) for name, t in by_hand.state_dict().items())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    apply_edits(model, (), units)
    assert changed(before, model.state_dict()) == {}


def one_step(model, optimizer):
    model.train()
    optimizer.zero_grad()
    model(torch.rand(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("training", ["called", "held"])
def test_a_mask_holds_what_is_silent_and_nothing_else(model, units, training):
    done = edits(units, (1, 0), (4, 3))
    apply_edits(model, done, units)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mask = Mask(model, done, units)
    # Train mode: a dead convolution behind a live γ would get huge gradients and come back.
    if training == "held":
        with mask.held(optimizer):
            for _ in range(3):
                one_step(model, optimizer)
    else:
        for _ in range(3):
            one_step(model, optimizer)
            mask()
    for unit, silent in ((units[1], [0]), (units[4], [3])):
        for tensor in own_tensors(model, unit):
            rows = tensor.detach().flatten(1) if tensor.ndim > 1 else tensor.detach()[:, None]
            assert [i for i, row in enumerate(rows) if not row.any()] == silent
    # Everything that is free did train.
    moved = changed(before, dict(model.named_parameters()))
    assert set(moved) == set(before)


def test_a_mask_lets_go_after_the_block_even_after_an_exception(model, units):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = Mask(model, edits(units, (0, 0)), units)
    with pytest.raises(KeyboardInterrupt), mask.held(optimizer):
        raise KeyboardInterrupt
    assert own_tensors(model, units[0])[1][0] == 0
    with torch.no_grad():
        own_tensors(model, units[0])[1].fill_(1)
    one_step(model, optimizer)
    assert own_tensors(model, units[0])[1][0] != 0


def test_a_mask_clears_even_what_is_not_finite(model, units):
    mask = Mask(model, edits(units, (0, 0)), units)
    weight = own_tensors(model, units[0])[0]
    with torch.no_grad():
        weight[0] = float("nan")
        weight[1] = -1
    mask()
    assert torch.equal(weight[0], torch.zeros_like(weight[0]))
    assert not torch.signbit(weight[0]).any()
    assert (weight[1] == -1).all()


@pytest.mark.parametrize("number", [-1, 2])
def test_no_such_filter_changes_nothing(model, units, number):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"filters from 0 to 1 of body.features.0, got -?\d. Filt"):
        silence(model, [units[1], units[0]], [0, number])
    assert changed(before, model.state_dict()) == {}


def test_messages_of_wrong_units_and_edits(model, units):
    with pytest.raises(
        ModelError, match=r"a layer of the model, got 'nowhere'. Use the units of t"
    ):
        silence(model, Unit("nowhere", 3, None, False), 0)
    with pytest.raises(ModelError, match=r"expected 9 filters in body.features.0, got 2. Use the"):
        silence(model, Unit("body.features.0", 9, None, False), 0)
    with pytest.raises(ModelError, match=r"one unit for every filter, got 1 units and 2 filters"):
        silence(model, [units[0]], [0, 1])
    with pytest.raises(
        ModelError, match=r"edits of the kinds silence, .*, got 'warp'. These edits"
    ):
        apply_edits(model, (Edit("warp", units[0].layer, 0, 1),), units)
    with pytest.raises(ModelError, match=r"got 'body.features.00'. Did you mean 'body.features.0'"):
        apply_edits(model, (Edit("silence", "body.features.00", 0, 1),), units)


@pytest.mark.parametrize(
    ("kind", "layer", "dim", "zero"),
    [
        ("scale", "body.features.1", 0, ["weight"]),
        ("mute", "body.features.1", 0, ["weight", "bias"]),
        ("feature", "body.classifier", 1, ["weight"]),
    ],
)
def test_edits_of_channels(model, units, kind, layer, dim, zero):
    before = {name: t.clone() for name, t in model.named_parameters()}
    done = (Edit(kind, layer, 1, 1), Edit(kind, layer, 0, 2))
    apply_edits(model, done, units)
    assert {name for name, t in model.named_parameters() if not torch.equal(t, before[name])} == {
        f"{layer}.{name}" for name in zero
    }
    for name in zero:
        rows = model.get_parameter(f"{layer}.{name}").detach().transpose(0, dim)
        assert [i for i, row in enumerate(rows) if not row.any()] == [0, 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = Mask(model, done, units)
    with mask.held(optimizer):
        one_step(model, optimizer)
    assert not any(t.index_select(d, i).any() for t, d, i in zeroed(model, done, units))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("mute", "body.features.1", 2, 1), "filters from 0 to 1 of body.features.1, got 2"),
        (Edit("mute", "body.features.0", 0, 1), r"whose channels can be edited \(mute\), got body"),
        (Edit("feature", "body.features.1", 0, 1), r"whose inputs can be edited \(feature\)"),
        (Edit("scale", "body.features.2", 0, 1), "got body.features.2, a ReLU"),
        (Edit("scale", "nowhere", 0, 1), "a layer of the model, got 'nowhere'"),
        (Edit("scale", "body.features.1", None, 1), "the index of an edit of kind scale, got none"),
        (Edit("silence", "body.features.0", None, 1), "the index of an edit of kind silence"),
    ],
)
def test_edits_of_channels_that_are_not_there(model, units, edit, message):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        apply_edits(model, (Edit("silence", "body.features.0", 0, 1), edit), units)
    assert changed(before, model.state_dict()) == {}


def test_a_computed_weight_cannot_be_silenced():
    net = nn.Sequential(weight_norm(nn.Conv2d(1, 2, 1)))
    with pytest.raises(ModelError, match=r"a weight of its own in 0, got one comp.*remove_param"):
        silence(net, Unit("0", 2, None, False), 0)


def test_a_computed_weight_is_refused_before_any_work():
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(nn.Conv2d(1, 2, 1), weight_norm(nn.Conv2d(2, 2, 1)), *ends)
    images = LabelledImages(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ModelError, match=r"a weight of its own in 1, got one comp.*remove_param"):
        convolutions(net, images, "TSBD")
