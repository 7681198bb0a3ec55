"""Bundles go round; weights files of every honest kind load; what does not fit is explained."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from excise.errors import ModelError, UnsafeFileError
from excise.models import (
    Network,
    build_model,
    load_bundle,
    load_model,
    read_card,
    save_bundle,
    write_model,
)
from excise.seeding import Rng

ARCH = "excise:preactresnet18,width=2"


@pytest.fixture
def network():
    return build_model(ARCH, classes=("a", "b", "c"), rng=Rng(5)).eval()


def equal(left, right):
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("arch", "side"),
    [
        (ARCH, 32),
        ("excise:vgg19_bn,width=2", 32),
        ("torchvision:mobilenet_v3_small,width_mult=0.5", 64),
        ("torchvision:regnet_x_400mf", 64),
        ("torchvision:googlenet", 64),
        ("timm:resnet10t", 64),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_a_bundle_goes_round(tmp_path, arch, side, half):
    made = build_model(
        arch, classes=("a", "b"), in_channels=1, input_size=(side, side), mean=[0.4], std=[0.3]
    ).eval()
    save_bundle(tmp_path / "bundle", made, {"note": "of β and γ"}, half=half)
    before = torch.random.get_rng_state()
    loaded, card = load_bundle(tmp_path / "bundle")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(m.training for m in loaded.modules())
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert all(p.requires_grad for p in loaded.parameters())
    assert (loaded.arch, loaded.classes, loaded.input_shape) == (arch, ("a", "b"), (1, side, side))
    assert (loaded.mean, loaded.std, card["note"]) == ((0.4,), (0.3,), "of β and γ")
    assert card["created_by"].startswith("excise ")
    images = torch.rand(2, 1, side, side)
    assert half or equal(made, loaded)
    torch.testing.assert_close(made(images), loaded(images), atol=2e-2 if half else 0, rtol=0)


@pytest.mark.fast
def test_half_keeps_vectors_and_what_does_not_fit(tmp_path, network):
    with torch.no_grad():
        network.body.linear.weight[0, 0] = 1e5
    save_bundle(tmp_path / "b", network, {}, half=True)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert stored["conv1.weight"].dtype == torch.float16
    assert stored["linear.weight"].dtype == torch.float32
    assert stored["layer1.0.bn1.running_var"].dtype == torch.float32
    assert stored["layer1.0.bn1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.fast
def test_a_caller_may_add_files_and_words(tmp_path, network):
    card = {"version": 7, "arch": "os:system", "measured": {"acc": 0.9}}
    write_model(tmp_path, network, card)
    (tmp_path / "trigger.png").write_bytes(b"x")
    assert read_card(tmp_path)["measured"] == {"acc": 0.9}
    # What the network knows itself stands above what the mapping says.
    assert read_card(tmp_path)["arch"] == ARCH
    assert equal(load_model(tmp_path), network)


@pytest.mark.fast
@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_failed_save_leaves_the_older_bundle(tmp_path, network, value):
    save_bundle(tmp_path / "b", network, {"is": "old"})
    with pytest.raises(ModelError, match=r"a card of plain JSON values, got .* Use text, finite"):
        save_bundle(tmp_path / "b", network, {"is": value})
    with torch.no_grad():
        network.body.linear.bias[0] = float("inf")
    with pytest.raises(ModelError, match=r"finite weights, got NaN or infinity in linear.bias"):
        save_bundle(tmp_path / "b", network, {"is": "new"})
    assert read_card(tmp_path / "b")["is"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.fast
def test_arguments_stand_above_the_card(tmp_path, network, monkeypatch):
    save_bundle(tmp_path / "b", network, {})
    loaded = load_model(
        tmp_path / "b", classes=("x", "y", "z"), mean=[0.1], std=[0.2], input_size=(8, 8)
    )
    assert (loaded.classes, loaded.input_shape) == (("x", "y", "z"), (3, 8, 8))
    assert (loaded.mean, loaded.std) == ((0.1,) * 3, (0.2,) * 3)
    with pytest.raises(ModelError, match=r"take images of 3 channels: in_channels=3\?"):
        load_model(tmp_path / "b", in_channels=1, mean=[0], std=[1])
    with pytest.raises(ModelError, match=re.escape("tell 3 classes apart, not 4: classes=3?")):
        load_model(tmp_path / "b", classes=4)


@pytest.mark.fast
def test_a_factory_s_bundle_needs_the_caller_s_word(tmp_path, monkeypatch):
    (tmp_path / "ournets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = build_model("ournets:make", classes=2, input_size=(2, 2)).eval()
    save_bundle(tmp_path / "b", made, {})
    with pytest.raises(ModelError, match="expected a built-in architecture"):
        load_model(tmp_path / "b")
    assert equal(load_model(tmp_path / "b", arch="ournets:make"), made)


@pytest.mark.fast
def test_a_factory_with_its_number_of_classes_built_in(tmp_path, monkeypatch):
    (tmp_path / "fixed.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    norm = nn.BatchNorm2d(1)  # of length 1, and no class\n"
        "    return nn.Sequential(nn.Conv2d(3, 1, 1), norm, nn.Flatten(), nn.Linear(64, 12))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = build_model("fixed:make", classes=12, input_size=(8, 8)).eval()
    path = saved(tmp_path, made.body.state_dict())
    loaded = load_model(path, arch="fixed:make", input_size=(8, 8))
    assert loaded.classes == tuple(str(k) for k in range(12))
    assert equal(loaded, made)
    assert not any(module.training for module in loaded.modules())
    assert load_model(path, arch="fixed:make", classes=12).classes == loaded.classes
    with pytest.raises(ModelError, match=r"number of classes of fixed:make.*Say it: classes=10;"):
        load_model(path, arch="fixed:make")


@pytest.mark.fast
def test_a_network_of_one_class(tmp_path):
    made = build_model(ARCH, classes=1)
    assert load_model(saved(tmp_path, made.body.state_dict()), arch=ARCH).classes == ("0",)


@pytest.mark.fast
def test_a_factory_that_keeps_what_it_made_is_called_in_no_unusual_way(tmp_path, monkeypatch):
    (tmp_path / "keeps.py").write_text(
        "from torch import nn\n"
        "made = []\n"
        "def make(num_classes):\n"
        "    made.append(made[0] if made else nn.Linear(2, num_classes))\n"
        "    return made[-1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path, nn.Linear(2, 3).state_dict())
    loaded = load_model(path, arch="keeps:make", classes=3, input_size=(1, 1))
    assert not any(p.is_meta for p in loaded.parameters())


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


class Extra:
    pass


@pytest.mark.fast
@pytest.mark.parametrize("save", [torch.save, legacy, save_file])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_the_kind_of_a_file_is_told_by_its_content(tmp_path, network, save, suffix):
    path = tmp_path / f"weights{suffix}"
    save(network.body.state_dict(), path)
    loaded = load_model(str(path), arch=ARCH, classes=3)
    assert isinstance(loaded, Network)
    assert equal(loaded, network)
    assert not loaded.training
    assert loaded.input_shape == (3, 32, 32)


WRAPPERS = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "acc": torch.tensor(0.5)},
    "model": lambda s: {"model": s, "num_classes": 3, "name": "x", "x": [1, (2.0, None)]},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"lr": 1}},
    "net": lambda s: {"net": s},
    "weights": lambda s: {"weights": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module.": lambda s: {f"module.{n}": t for n, t in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "body.": lambda s: {f"body.{n}": t for n, t in s.items()},
    "three prefixes": lambda s: {"net": {f"module._orig_mod.body.{n}": t for n, t in s.items()}},
    "lightning": lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}},
    "doubles": lambda s: {n: t.double() if t.is_floating_point() else t for n, t in s.items()},
    "parameters": lambda s: {
        n: nn.Parameter(t) if t.is_floating_point() else t for n, t in s.items()
    },
    "no counts": lambda s: {n: t for n, t in s.items() if "num_batches" not in n},
}


@pytest.mark.fast
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_people_have(tmp_path, network, wrap):
    torch.save(WRAPPERS[wrap](dict(network.body.state_dict())), tmp_path / "w.pth")
    assert equal(load_model(tmp_path / "w.pth", arch=ARCH, classes=3), network)


@pytest.mark.fast
def test_a_whole_network_s_state_dict_loads_too(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    assert equal(load_model(tmp_path / "w.pth", arch=ARCH, classes=3), network)


@pytest.mark.parametrize(
    "arch", [ARCH, "excise:vgg19_bn,width=2", "torchvision:squeezenet1_0", "timm:resnet10t"]
)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_number_of_classes_is_read_off_the_output_layer(tmp_path, arch, count):
    made = build_model(arch, classes=count)
    torch.save(made.body.state_dict(), tmp_path / "w.pth")
    assert load_model(tmp_path / "w.pth", arch=arch).classes == made.classes


def test_auxiliary_outputs_of_inception_are_left_out(tmp_path):
    from torchvision.models import inception_v3

    with torch.device("meta"):
        full = inception_v3(weights=None, num_classes=4, init_weights=False)
    state = {n: torch.zeros(t.shape, dtype=t.dtype) for n, t in full.state_dict().items()}
    assert any(name.startswith("AuxLogits.") for name in state)
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors", arch="torchvision:inception_v3", classes=4)
    assert loaded.input_shape == (3, 299, 299)


def saved(tmp_path, state):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    return path


@pytest.mark.fast
def test_another_number_of_classes_is_named(tmp_path, network):
    path = saved(tmp_path, network.body.state_dict())
    message = (
        f"expected linear.weight of shape (43, 16) in {ARCH}, got (3, 16), and 1 more that differ."
        " The weights tell 3 classes apart, not 43: classes=3?"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(path, arch=ARCH, classes=43)


@pytest.mark.fast
def test_another_number_of_channels_is_named(tmp_path, network):
    path = saved(tmp_path, network.body.state_dict())
    message = "conv1.weight of shape (2, 1, 3, 3)"
    with pytest.raises(ModelError, match=re.escape(message) + r".*in_channels=3\?"):
        load_model(path, arch=ARCH, in_channels=1)


@pytest.mark.fast
@pytest.mark.parametrize("classes", [3, None])
def test_another_width_is_named(tmp_path, network, classes):
    path = saved(tmp_path, network.body.state_dict())
    with pytest.raises(ModelError, match=r"conv1.weight of shape \(4, 3.* more that differ. Name"):
        load_model(path, arch="excise:preactresnet18,width=4", classes=classes)


@pytest.mark.fast
def test_names_that_are_missing_or_left_over_are_listed(tmp_path, network):
    state = {n.replace("layer1", "stage1"): t for n, t in network.body.state_dict().items()}
    message = (
        f"expected the tensors of {ARCH}, got 24 missing (layer1.0.bn1.weight, layer1.0.bn1.bias,"
        " layer1.0.bn1.running_mean and 21 more) and 24 it does not have (stage1.0.bn1.weight,"
    )
    with pytest.raises(ModelError, match=re.escape(message) + r".*Name the architecture"):
        load_model(saved(tmp_path, state), arch=ARCH, classes=3)
    state = network.body.state_dict()
    del state["linear.bias"]
    with pytest.raises(ModelError, match=r"got 1 missing \(linear.bias\). Name the architecture"):
        load_model(saved(tmp_path, state), arch=ARCH, classes=3)


@pytest.mark.fast
def test_an_ambiguous_number_of_classes_is_asked_for(tmp_path, network):
    state = network.body.state_dict()
    state["linear.bias"] = torch.zeros(9)
    with pytest.raises(ModelError, match=r"got lengths \[3, 9\]. Say how many classes there are"):
        load_model(saved(tmp_path, state), arch=ARCH)


@pytest.mark.fast
def test_a_count_in_another_shape_is_explained(tmp_path, network):
    state = network.body.state_dict()
    state["layer1.0.bn1.num_batches_tracked"] = torch.zeros(5, dtype=torch.int64)
    for classes in (3, None):
        with pytest.raises(ModelError, match=r"num_batches_tracked of shape \(\).*got \(5,\)"):
            load_model(saved(tmp_path, state), arch=ARCH, classes=classes)


@pytest.mark.fast
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, network, value):
    state = network.body.state_dict()
    state["layer2.1.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"NaN or infinity in layer2.1.conv1.weight. The file is"):
        load_model(saved(tmp_path, state), arch=ARCH, classes=3)


@pytest.mark.fast
def test_doubles_beyond_float32_are_named(tmp_path, network):
    state = network.body.state_dict()
    state["linear.bias"] = torch.full((3,), 1e300, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"NaN or infinity in linear.bias"):
        load_model(saved(tmp_path, state), arch=ARCH, classes=3)


@pytest.mark.fast
def test_integer_weights_are_refused(tmp_path, network):
    state = network.body.state_dict()
    state["linear.weight"] = torch.zeros((3, 16), dtype=torch.int8)
    with pytest.raises(
        ModelError, match=r"floating-point weights in linear.weight, got torch.int8"
    ):
        load_model(saved(tmp_path, state), arch=ARCH, classes=3)


@pytest.mark.fast
def test_weights_without_an_architecture(tmp_path, network):
    path = saved(tmp_path, network.body.state_dict())
    with pytest.raises(ModelError, match=r"the architecture of the weights in .*got none. Name it"):
        load_model(path)


@pytest.mark.fast
def test_a_network_that_refuses_its_weights(tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes): super().__init__(2, num_classes)\n"
        "    def load_state_dict(self, *_, **__): raise RuntimeError('not these')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path, nn.Linear(2, 3).state_dict())
    with pytest.raises(ModelError, match=r"weights the network accepts, got not these. Name the"):
        load_model(path, arch="picky:Net", classes=3)


@pytest.mark.fast
def test_a_module_is_checked_and_comes_back_as_it_is(network):
    assert load_model(network) is network
    with pytest.raises(ModelError, match="expected 4 logits an image, one a class, got 3"):
        load_model(network, classes=("a", "b", "c", "d"))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    assert load_model(plain) is plain
    assert load_model(plain, classes=3, input_size=(2, 2)) is plain
    with pytest.raises(ModelError, match="takes images of shape"):
        load_model(plain, input_size=(2, 2), in_channels=1)
    with torch.no_grad():
        plain[1].bias[0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinity in 1.bias"):
        load_model(plain)


@pytest.mark.fast
def test_files_larger_than_allowed(tmp_path, network):
    path = saved(tmp_path, network.body.state_dict())
    size = path.stat().st_size
    with pytest.raises(UnsafeFileError, match=rf"at most 1,000 bytes .*max_bytes={size} "):
        load_model(path, arch=ARCH, classes=3, max_bytes=1000)
    save_bundle(tmp_path / "b", network, {})
    with pytest.raises(UnsafeFileError, match="at most 1,000 bytes"):
        load_model(tmp_path / "b", max_bytes=1000)


@pytest.mark.fast
def test_a_directory_that_is_no_bundle(tmp_path, network):
    with pytest.raises(ModelError, match=r"a bundle in .*got no card.json. Give a bundle's dir"):
        load_model(tmp_path)
    save_bundle(tmp_path / "b", network, {})
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a file at .*model.safetensors, got nothing. Check"):
        load_model(tmp_path / "b")


CARDS = {
    "version": (2, "version of"),
    "arch": (3, "arch of"),
    "classes": ([], "classes of"),
    "in_channels": (0, "in_channels of"),
    "input_size": ([32, 5000], "input_size.1 of"),
    "mean": ([0.5], "mean and std with one number a channel"),
    "std": ([1, 0, 1], "std.1 of"),
    "created_by": (None, "created_by of"),
}


@pytest.mark.fast
@pytest.mark.parametrize("key", CARDS)
def test_a_card_with_a_wrong_or_missing_entry(tmp_path, network, key):
    save_bundle(tmp_path / "b", network, {})
    path = tmp_path / "b" / "card.json"
    card = json.loads(path.read_text())
    value, message = CARDS[key]
    path.write_text(json.dumps(card | {key: value}))
    with pytest.raises(ModelError, match=rf"{message}.*Correct the card, or give"):
        read_card(tmp_path / "b")
    del card[key]
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match=rf"{key} of .*Field required"):
        read_card(tmp_path / "b")


@pytest.mark.fast
def test_whole_numbers_are_fine_as_mean_and_std(tmp_path, network):
    save_bundle(tmp_path / "b", network, {})
    path = tmp_path / "b" / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"mean": [0, 0, 0], "std": [1, 1, 1]}))
    assert load_model(tmp_path / "b").std == (1.0, 1.0, 1.0)
