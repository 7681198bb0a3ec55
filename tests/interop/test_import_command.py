"""``excise import`` as a person meets it, and the peer's own networks in full size."""

import json

import pytest
import torch
from tests.interop.files import ARCH, Dataset, network, result, saved, state_of_images
from torch import nn

from excise.attacks import load_victim
from excise.cli import main
from excise.experiments.backdoorbench import import_backdoorbench
from excise.models import build_model


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_large"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("vgg19_bn", "efficientnet_b3", "convnext_tiny", "vit_b_16", "densenet161")
    ],
)
def test_torchvision_networks_fit(tmp_path, name):
    with torch.random.fork_rng():
        made = build_model(f"torchvision:{name}", classes=43).body
    # The peer's transformers are two modules: one that resizes, then the network.
    state = nn.Sequential(nn.Identity(), made).state_dict() if "vit" in name else made.state_dict()
    path = saved(tmp_path / "a.pt", result(state, model_name=name, num_classes=43,
                                           clean_data="gtsrb", bd_train=None))  # fmt: skip
    import_backdoorbench(path, tmp_path / "b")
    victim, card = load_victim(tmp_path / "b")
    size = 224 if "vit" in name else 32
    assert victim.model.input_shape == (3, size, size)
    assert victim.model.mean == (0.0, 0.0, 0.0)
    assert victim.model.std == (1.0, 1.0, 1.0)
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(victim.model(images), made.eval()(images))
    assert ("resizing" in card["imported"]["left"]) == ("vit" in name)
    assert victim.poison_index is None
    assert "while it trains" in card["imported"]["left"]["bd_train"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_and_what_comes_after(tmp_path, capsys):
    changes = {"clean_data": "digits", "img_size": [8, 8, 1], "bd_train": state_of_images(50, [4])}
    made = build_model(ARCH, classes=10, in_channels=1)
    path = saved(tmp_path / "attack_result.pt", result(made.body.state_dict(), **changes))
    given = ["--arch", ARCH, "--mean", "0.3", "--std", "0.4", "--classes", "digits"]
    assert run("import", "backdoorbench", path, "--out", tmp_path / "b", *given) == 0
    said = capsys.readouterr().out
    assert "taken over:\n  network: excise:preactresnet18" in said
    assert "positions of 1 poisoned training images" in said
    assert "not taken over:\n  trigger: the file does not hold it" in said
    assert run("evaluate", tmp_path / "b", "--images", "digits") == 0
    trigger = "badnets,size=2,row=-2,column=-2,target=3"
    quick = [
        "--method",
        "grad-prune",
        "--max-tune-epochs",
        "1",
        "--patience",
        "1",
        "--curve-images",
        "30",
        "--spc",
        "2",
    ]
    out = ["--images", "digits", "--trigger", trigger, "--out", tmp_path / "r"]
    assert run("repair", tmp_path / "b", *out, *quick) in (0, 1)
    capsys.readouterr()
    # Nothing is overwritten unless asked.
    assert run("import", "backdoorbench", path, "--out", tmp_path / "b", *given) == 2
    again = [*given, "--overwrite", "--json"]
    assert run("import", "backdoorbench", path, "--out", tmp_path / "b", *again) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["mean"] == [pytest.approx(0.3)]
    assert card["classes"] == [str(k) for k in range(10)]


def test_names_that_a_terminal_would_obey(tmp_path, capsys):
    content = result(network().body.state_dict()) | {"\x1b[2Jkey": 1, "args": Dataset()}
    path = saved(tmp_path / "a.pt", content)
    assert run("import", "backdoorbench", path, "--out", tmp_path / "b", "--arch", ARCH) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_bad_input_exits_with_2(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 and then nothing")
    assert run("import", "backdoorbench", tmp_path / "a.pt", "--out", tmp_path / "b") == 2
    assert "excise import: expected a whole archive" in capsys.readouterr().err
    assert run("import", "somebody", tmp_path / "a.pt", "--out", tmp_path / "b") == 2
