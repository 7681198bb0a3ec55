"""The networks of this package, and build_model with every kind of name."""

import re

import pytest
import torch
from torch import nn

from excise.errors import ModelError
from excise.models import Network, build_model, load_model, save_bundle
from excise.models.preact_resnet import preactresnet18
from excise.models.vgg import vgg19_bn
from excise.seeding import Rng

SMALL = "excise:preactresnet18,width=4"


def convs(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.fast
@pytest.mark.parametrize("make", [preactresnet18, vgg19_bn])
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8), (1, 28)])
def test_takes_small_images(make, channels, side):
    model = make(7, in_channels=channels, width=4)
    assert model(torch.rand(2, channels, side, side)).shape == (2, 7)


@pytest.mark.fast
def test_preactresnet18_has_the_names_of_the_fields_checkpoints():
    names = set(preactresnet18(10).state_dict())
    assert {"conv1.weight", "linear.weight", "linear.bias"} <= names
    assert {"layer2.0.shortcut.0.weight", "layer1.0.bn1.running_mean"} <= names
    assert "layer1.0.shortcut.0.weight" not in names
    # 20 convolutions, 16 batch norms of 5 tensors, one linear layer of 2.
    assert len(names) == 20 + 16 * 5 + 2


@pytest.mark.fast
@pytest.mark.parametrize("width", [4, 8])
def test_preactresnet18_is_the_paper_s_formula_on_one_block(width):
    block = preactresnet18(10, width=width).layer2[0].eval()
    x = torch.randn(2, width, 8, 8)
    a = torch.relu(block.bn1(x))
    weight = block.shortcut[0].weight
    around = torch.nn.functional.conv2d(a, weight, stride=2)
    by_hand = block.conv2(torch.relu(block.bn2(block.conv1(a)))) + around
    torch.testing.assert_close(block(x), by_hand)


@pytest.mark.fast
@pytest.mark.parametrize("width", ["0", "1025", "2.5", "true", "wide"])
def test_a_width_out_of_range_is_refused(width):
    with pytest.raises(ModelError, match=r"expected a width from 1 to 1024, got width=.*width=16"):
        build_model(f"excise:vgg19_bn,width={width}", classes=2)


@pytest.mark.fast
def test_networks_say_what_they_are():
    network = build_model(SMALL, classes=("cat", "dog"), in_channels=1, mean=[0.4], std=[0.2])
    assert isinstance(network, Network)
    assert (network.arch, network.classes) == (SMALL, ("cat", "dog"))
    assert (network.input_shape, network.mean, network.std) == ((1, 32, 32), (0.4,), (0.2,))
    assert build_model(SMALL, classes=3).classes == ("0", "1", "2")
    assert build_model(SMALL, classes=3, input_size=(8, 9)).input_shape == (3, 8, 9)


@pytest.mark.fast
def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = build_model(SMALL, classes=2, rng=Rng(1)).state_dict()
    again = build_model(SMALL, classes=2, rng=Rng(1)).state_dict()
    other = build_model(SMALL, classes=2, rng=Rng(2)).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["body.conv1.weight"], other["body.conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        ("torchvision:resnet18", 64),
        ("torchvision:mobilenet_v3_small,width_mult=0.5", 64),
        ("torchvision:googlenet", 64),
        ("torchvision:inception_v3", 96),
        ("timm:resnet10t", 64),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_other_families_give_one_tensor_of_logits(arch, side, channels):
    network = build_model(arch, classes=5, in_channels=channels).eval()
    assert network(torch.rand(2, channels, side, side)).shape == (2, 5)
    assert network.train()(torch.rand(2, channels, side, side)).shape == (2, 5)


def test_usual_image_sizes():
    assert build_model("torchvision:resnet18", classes=2).input_shape == (3, 224, 224)
    assert build_model("torchvision:inception_v3", classes=2).input_shape == (3, 299, 299)
    assert build_model("timm:resnet10t", classes=2).input_shape == (3, 176, 176)


@pytest.mark.fast
def test_an_adapted_first_convolution_keeps_its_scale():
    three = convs(build_model("torchvision:resnet18", classes=2))[0].weight
    four = convs(build_model("torchvision:resnet18", classes=2, in_channels=4))[0].weight
    assert four.shape == (64, 4, 7, 7)
    assert float(four.detach().std()) == pytest.approx(float(three.detach().std()), rel=0.05)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("excise:preact18", "Did you mean 'excise:preactresnet18'?"),
        ("resnet18", "Write torchvision:resnet18."),
        ("preactresnet18", "Write excise:preactresnet18."),
        ("qqqq", "Write for example excise:preactresnet18,width=16."),
        ("excise:", "excise:NAME, torchvision:NAME, timm:NAME or package.module:factory"),
        ("torchvision:resnt18", "Did you mean 'resnet18'?"),
        ("torchvision:qqqq", "torchvision knows"),
        ("timm:resnt18", "Did you mean 'resnet18'?"),
        ("timm:hf_hub:timm/resnet18", "which would download or read files"),
        ("timm:hf-hub:timm/resnet18", "which would download or read files"),
        ("timm:local-dir:/tmp/x", "which would download or read files"),
        ("hf_hub:timm/resnet18", "which would download or read files"),
        ("local-dir:/tmp/x", "which would download or read files"),
        ("torchvision:resnet18,weights=DEFAULT", "weights are loaded from your file"),
        ("torchvision:resnet18,num_classes=3", "have arguments of their own"),
        ("torchvision:resnet18,norm_layer=x", "numbers, true or false as fields"),
        ("timm:resnet18,pretrained=true", "weights are loaded from your file"),
        ("timm:resnet18,checkpoint_path=1", "weights are loaded from your file"),
        ("torchvision:resnet18,groups=1e9", "at most 8192"),
        ("torchvision:resnet18,groups=nan", "at most 8192"),
        ("torchvision:resnet18,depth=3", "to build a network, got TypeError"),
        ("excise:vgg19_bn,with=3", "Did you mean 'width'?"),
        ("excise:vgg19_bn,width", "name,key=value,key=value with every key once"),
        ("no_such_package:make", "got ModuleNotFoundError: No module named 'no_such_package'"),
        ("math:nothing", "got AttributeError"),
        ("math:pi", "expected math:pi to be a function or class, got float"),
        ("builtins:dict", "got ValueError"),
    ],
)
def test_wrong_names_say_what_would_be_right(arch, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(arch, classes=2)


@pytest.mark.fast
def test_a_name_from_disk_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"expected a built-in architecture .*If you trust that"):
        build_model("trap:make", classes=2, trusted=False)


@pytest.mark.fast
def test_a_factory_is_given_what_it_takes(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def plain(num_classes, hidden=2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.Linear(hidden,"
        " num_classes))\n"
        "def anything(**given):\n"
        "    assert given == {'num_classes': 4, 'in_channels': 3}\n"
        "    return nn.Flatten()\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = build_model("mynets:plain,hidden=5", classes=4, input_size=(2, 2))
    assert network(torch.rand(1, 3, 2, 2)).shape == (1, 4)
    assert network.body[1].out_features == 5
    build_model("mynets:anything", classes=4)
    with pytest.raises(ModelError, match=r"mynets:nothing to return a torch.nn.Module, got int"):
        build_model("mynets:nothing", classes=4)


@pytest.mark.fast
@pytest.mark.parametrize("classes", [0, (), "cat", (1, 2)])
def test_wrong_classes(classes):
    with pytest.raises(ModelError, match=r"classes as a number of at least 1.*classes=10"):
        build_model(SMALL, classes=classes)


@pytest.mark.fast
def test_wrong_channels():
    with pytest.raises(ModelError, match=r"in_channels of at least 1, got 0. Gray is 1"):
        build_model(SMALL, classes=2, in_channels=0)


@pytest.mark.fast
def test_normalization_comes_first_and_stands_in_no_state_dict():
    network = build_model(SMALL, classes=2, mean=(0.5,), std=(0.1, 0.2, 0.4))
    assert network.mean == (0.5, 0.5, 0.5)
    images = torch.rand(2, 3, 4, 4)
    by_hand = (images - 0.5) / torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(network.normalize(images), by_hand)
    assert not any("normalize" in name for name in network.state_dict())
    assert "mean=[0.5, 0.5, 0.5]" in repr(network)
    assert network.double().normalize.mean.dtype == torch.float64


@pytest.mark.fast
@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.1, 0.2), None, "a mean of 3 finite numbers, one a channel, got mean=(0.1, 0.2)"),
        (None, (1, 0, 1), "a positive std for every channel"),
        ("half", None, "a mean of 3 finite numbers, one a channel, got mean='half'"),
        (object(), None, "a mean of 3 finite numbers"),
        ((float("nan"), 0, 0), None, "a mean of 3 finite numbers"),
        (None, (), "a std of 3 finite numbers"),
    ],
)
def test_wrong_normalization(mean, std, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        build_model(SMALL, classes=2, mean=mean, std=std)


@pytest.mark.fast
def test_one_number_stands_for_all(tmp_path):
    network = build_model(SMALL, classes=2, mean=0.5, std=1, input_size=8)
    assert (network.mean, network.std) == ((0.5,) * 3, (1.0,) * 3)
    assert network.input_shape == (3, 8, 8)
    assert build_model(SMALL, classes=2, mean=torch.full((3,), 0.5)).mean == (0.5,) * 3
    assert load_model(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), input_size=2)
    save_bundle(tmp_path / "b", network, {})
    assert load_model(tmp_path / "b", mean=0.1, input_size=4).input_shape == (3, 4, 4)


@pytest.mark.fast
@pytest.mark.parametrize("size", [0, (8,), (8, 8, 8), (8, 0), 8.0, (8, 8.0), "8", (), object()])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ModelError, match=r"expected input_size as one number of pixels or \(hei"):
        build_model(SMALL, classes=2, input_size=size)


def test_a_network_without_a_first_convolution_of_three_channels(monkeypatch):
    from torchvision import models

    monkeypatch.setattr(models, "get_model", lambda name, **_: nn.Flatten())
    with pytest.raises(ModelError, match=r"start with a convolution of 3 channels, got none"):
        build_model("torchvision:resnet18", classes=2, in_channels=1)


def test_outputs_that_nobody_named_take_names_once():
    network = build_model("excise:preactresnet18,width=2", classes=3)
    assert (network.classes, network.named) == (("0", "1", "2"), False)
    with pytest.raises(ModelError, match="3 names, one an output, got 2"):
        network.name_outputs(("a", "b"))
    network.name_outputs(("a", "b", "c"))
    assert (network.classes, network.named) == (("a", "b", "c"), True)
    network.name_outputs(("d", "e"))  # names that it has stand
    assert network.classes == ("a", "b", "c")
