"""Units, owners and gates: the table of the method notes, and small nets with known answers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from excise.errors import ModelError
from excise.models import Unit, build_model, prunable, trace


def summary(arch, side=32, channels=3):
    model = build_model(arch, classes=10, in_channels=channels)
    units = trace(model, torch.rand(1, channels, side, side))
    return (
        len(units),
        sum(unit.filters for unit in units),
        sum(unit.owner is not None for unit in units),
        sum(unit.gate for unit in units),
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("excise:preactresnet18", (20, 4800, 9, 0)),
        ("torchvision:resnet18", (20, 4800, 20, 0)),
        ("excise:vgg19_bn", (16, 5504, 16, 0)),
        ("torchvision:mobilenet_v3_large", (62, 17280, 46, 16)),
        ("torchvision:efficientnet_b3", (130, 63728, 78, 52)),
        # timm's has a last convolution without batch norm after the pooling.
        ("timm:mobilenetv3_large_100", (63, 18560, 46, 16)),
        ("timm:efficientnet_b3", (130, 63728, 78, 52)),
    ],
)
def test_the_table_of_owner_batch_norms(arch, expected):
    assert summary(arch) == expected


@pytest.mark.fast
@pytest.mark.parametrize("side", [32, 96])
def test_gates_are_found_whether_or_not_the_last_maps_are_one_pixel(side):
    assert summary("torchvision:mobilenet_v3_large", side) == (62, 17280, 46, 16)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("torchvision:vgg19_bn", (16, 5504, 16, 0)),
        ("torchvision:densenet121", (120, 10240, 59, 0)),
        ("torchvision:squeezenet1_0", (26, 2986, 0, 0)),
        ("timm:legacy_seresnet18", (36, 6840, 20, 16)),
        # Split attention gates branches: two convolutions a block, four blocks.
        ("timm:resnest14d", (27, 13088, 23, 8)),
    ],
)
def test_other_families(arch, expected):
    assert summary(arch, side=64) == expected


@pytest.mark.fast
def test_preactresnet18_owners_by_name_and_order():
    model = build_model("excise:preactresnet18,width=2", classes=2, in_channels=1)
    units = trace(model, torch.rand(3, 1, 8, 8))
    owners = {unit.layer: unit.owner for unit in units if unit.owner}
    blocks = [f"body.layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert owners == {"body.conv1": "body.layer1.0.bn1"} | {
        f"{block}.conv1": f"{block}.bn2" for block in blocks
    }
    assert [u.layer for u in units][:4] == [
        "body.conv1",
        "body.layer1.0.conv1",
        "body.layer1.0.conv2",
        "body.layer1.1.conv1",
    ]
    assert units[0] == Unit("body.conv1", 2, "body.layer1.0.bn1", False)
    assert units[-1].layer == "body.layer4.1.conv2"


class Net(nn.Module):
    """Whatever a test puts together: layers, and a forward pass of its own."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = forward

    def forward(self, images):
        return self.way(self, images).mean((2, 3))


def units_of(net, channels=4, side=6):
    return trace(net, torch.rand(2, channels, side, side))


def conv(i=4, o=4, k=3, **more):
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


@pytest.mark.fast
def test_order_is_that_of_execution_not_of_registration():
    net = Net(lambda s, x: s.a(s.b(x)), a=conv(), b=conv())
    assert [unit.layer for unit in units_of(net)] == ["b", "a"]


@pytest.mark.fast
def test_an_in_place_sum_makes_no_owner():
    def forward(s, x):
        out = s.a(x)
        out += x
        return s.bn(out)

    assert units_of(Net(forward, a=conv(), bn=nn.BatchNorm2d(4)))[0].owner is None


@pytest.mark.fast
def test_a_convolution_that_runs_twice_is_one_unit_without_owner():
    net = Net(lambda s, x: s.bn(s.a(s.a(x))), a=conv(), bn=nn.BatchNorm2d(4))
    assert units_of(net) == (Unit("a", 4, None, False),)


@pytest.mark.fast
def test_a_batch_norm_that_runs_twice_owns_nothing():
    net = Net(lambda s, x: s.bn(s.b(s.bn(s.a(x)))), a=conv(), b=conv(), bn=nn.BatchNorm2d(4))
    assert [unit.owner for unit in units_of(net)] == [None, None]


@pytest.mark.fast
def test_two_batch_norms_behind_one_convolution_are_no_owner():
    def forward(s, x):
        y = s.a(x)
        return s.bn1(y) + s.bn2(y)

    net = Net(forward, a=conv(), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4))
    assert units_of(net)[0].owner is None


@pytest.mark.fast
def test_a_batch_norm_without_scale_is_no_owner():
    net = Net(lambda s, x: s.bn(s.a(x)), a=conv(), bn=nn.BatchNorm2d(4, affine=False))
    assert units_of(net)[0].owner is None


@pytest.mark.fast
def test_an_owner_may_be_called_as_a_function():
    def forward(s, x):
        y = F.conv2d(x, s.a.weight, s.a.bias, padding=1)
        return F.batch_norm(y, s.bn.running_mean, s.bn.running_var, s.bn.weight, s.bn.bias)

    net = Net(forward, a=conv(), bn=nn.BatchNorm2d(4))
    assert units_of(net) == (Unit("a", 4, "bn", False),)


@pytest.mark.fast
def test_computed_weights_lead_to_their_convolution():
    net = Net(lambda s, x: s.bn(s.a(x)), a=weight_norm(conv()), bn=nn.BatchNorm2d(4))
    assert units_of(net) == (Unit("a", 4, "bn", False),)


@pytest.mark.fast
def test_two_convolutions_that_share_a_weight_are_one_unit():
    net = Net(lambda s, x: s.b(s.a(x)), a=conv(bias=False), b=conv(bias=False))
    net.b.weight = net.a.weight
    assert len(units_of(net)) == 1


@pytest.mark.fast
def test_unused_and_one_dimensional_convolutions_are_no_units():
    net = Net(
        lambda s, x: s.line(s.a(x).flatten(2)).unsqueeze(-1),
        a=conv(), line=nn.Conv1d(4, 4, 3), unused=conv(),
    )  # fmt: skip
    assert [unit.layer for unit in units_of(net)] == ["a"]


def excite(s, x, pool):
    return torch.sigmoid(s.up(F.relu(s.down(pool(x)))))


@pytest.mark.fast
@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: x.amax((2, 3), keepdim=True),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: F.max_pool2d(x, x.shape[2:]),
    ],
)
@pytest.mark.parametrize(
    "gate",
    [
        lambda x, g: x * g,
        lambda x, g: g * x,
        lambda x, g: x.mul_(g),
        lambda x, g: x * g.expand_as(x),
        lambda x, g: F.relu(x * g, inplace=True),
    ],
)
@pytest.mark.parametrize("side", [1, 6])
def test_squeeze_excite_in_many_spellings(pool, gate, side):
    def forward(s, x):
        y = s.bn(s.a(x))
        return s.b(gate(y, excite(s, y, pool)))

    net = Net(
        forward,
        a=conv(), bn=nn.BatchNorm2d(4), down=conv(4, 2, 1), up=conv(2, 4, 1), b=conv(),
    )  # fmt: skip
    units = units_of(net, side=side)
    assert [(unit.layer, unit.gate) for unit in units] == [
        ("a", False),
        ("down", True),
        ("up", True),
        ("b", False),
    ]
    assert [unit.layer for unit in prunable(units)] == ["a", "b"]
    assert prunable(units, include_gates=True) == units


@pytest.mark.fast
def test_channel_and_spatial_attention_are_gates():
    def forward(s, x):
        y = s.a(x)
        g = s.up(s.down(F.adaptive_avg_pool2d(y, 1))) + s.up(s.down(F.adaptive_max_pool2d(y, 1)))
        y = y * torch.sigmoid(g)
        both = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return y * torch.sigmoid(s.spatial(both))

    net = Net(forward, a=conv(), down=conv(4, 2, 1), up=conv(2, 4, 1), spatial=conv(2, 1))
    gates = {unit.layer: unit.gate for unit in units_of(net)}
    assert gates == {"a": False, "down": True, "up": True, "spatial": True}


@pytest.mark.fast
def test_products_that_are_no_gates():
    def forward(s, x):
        y = s.a(x)
        y = y * (F.relu6(y + 3) / 6)  # hard swish spelled out
        y = y * s.scale  # layer scale
        pooled = s.head(y.mean((2, 3), keepdim=True))
        return pooled * torch.sigmoid(pooled)

    net = Net(forward, a=conv(), head=conv(4, 4, 1))
    net.scale = nn.Parameter(torch.ones(4, 1, 1))
    assert [unit.gate for unit in units_of(net)] == [False, False]


@pytest.mark.fast
def test_a_convolution_that_is_a_gate_and_a_layer_is_no_gate():
    def forward(s, x):
        y = s.a(x)
        return s.a(y * torch.sigmoid(s.a(F.adaptive_avg_pool2d(y, 1))))

    assert [unit.gate for unit in units_of(Net(forward, a=conv()))] == [False]


@pytest.mark.fast
def test_a_network_without_convolutions_has_no_units():
    assert trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2)) == ()
    assert trace(nn.Flatten(), torch.rand(1, 1, 2, 2)) == ()


def snapshot(model):
    tensors = {n: (t.clone(), t.data_ptr()) for n, t in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    return tensors, flags, [m.training for m in model.modules()], hooks


def assert_untouched(model, before):
    tensors, *rest = snapshot(model)
    assert rest == list(before[1:])
    assert all(p.grad is None for p in model.parameters())
    for name, (value, pointer) in before[0].items():
        assert tensors[name][1] == pointer
        assert torch.equal(tensors[name][0], value)


@pytest.mark.fast
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_untouched_in_any_mode_of_the_caller(caller):
    model = build_model("excise:preactresnet18,width=2", classes=2).train()
    model.body.layer1.eval()
    for parameter in model.body.layer2.parameters():
        parameter.requires_grad_(False)
    images = torch.rand(2, 3, 8, 8)
    before, state = snapshot(model), torch.random.get_rng_state()
    with caller():
        units = trace(model, images)
    assert len(units) == 20
    assert torch.equal(state, torch.random.get_rng_state())
    assert_untouched(model, before)


@pytest.mark.fast
def test_a_model_made_in_inference_mode_can_be_traced():
    with torch.inference_mode():
        model = build_model("excise:preactresnet18,width=2", classes=2)
        units = trace(model, torch.rand(1, 3, 8, 8))
    assert len(units) == 20


@pytest.mark.fast
def test_the_model_is_untouched_when_its_forward_pass_raises():
    def forward(s, x):
        s.bn(s.a(x))
        raise RuntimeError("half way")

    model = Net(forward, a=conv(), bn=nn.BatchNorm2d(4)).train()
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"takes images of shape \(1, 4, 6, 6\), got.*half way"):
        units_of(model)
    assert_untouched(model, before)


@pytest.mark.fast
def test_counters_in_a_forward_pass_count_on_the_copy():
    def forward(s, x):
        s.seen += 1
        return s.a(x)

    model = Net(forward, a=conv())
    model.register_buffer("seen", torch.zeros(()))
    units_of(model)
    assert model.seen == 0


@pytest.mark.fast
def test_a_forward_pass_without_a_graph_is_refused():
    @torch.no_grad()
    def forward(s, x):
        return s.a(x)

    with pytest.raises(ModelError, match=r"that autograd can follow, got logits without a graph"):
        units_of(Net(forward, a=conv()))


@pytest.mark.fast
def test_double_precision_models_and_images_of_another_type():
    net = Net(lambda s, x: s.a(x), a=conv()).double()
    assert len(units_of(net)) == 1
