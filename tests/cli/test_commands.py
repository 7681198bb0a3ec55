"""The command line as a person meets it: what it writes, what it refuses, its exit status."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from excise.attacks import Victim, save_victim
from excise.cli import COMMANDS, main
from excise.commands import demo
from excise.data import listing, load_data, to_png
from excise.data.decode import decode
from excise.errors import DataError
from excise.models import build_model, load_model, save_bundle, weights_hash
from excise.seeding import Rng
from excise.testing import Planted

#: Fine-tuning and the curve cost most and are tested elsewhere.
QUICK = [
    "--method",
    "grad-prune",
    "--max-tune-epochs",
    "1",
    "--patience",
    "2",
    "--curve-images",
    "60",
]
PATCH = "badnets,size=2,row=-2,column=-2,target=3"


@pytest.fixture
def victim(planted: Planted, tmp_path: Path) -> Path:
    """The planted network as a bundle, its card saying what data it was made from."""
    out = tmp_path / "victim"
    made = {"seed": 0, "data": {"source": "digits", "victim_images": 0.5}, "attack": {"name": "x"}}
    save_victim(out, Victim(planted.model, planted.backdoor, None), {"made": made})
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of each digit, one folder a class."""
    train = load_data("digits").train
    root = tmp_path / "pictures"
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
        for i, image in enumerate(train.images[train.labels == digit][:12]):
            (root / str(digit) / f"{i}.png").write_bytes(to_png(image))
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_of_a_large_folder_only_what_is_drawn_or_measured_on_is_decoded(
    victim: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(pictures, count, **fields):
        read.append(count)
        return decode(pictures, count, **fields)

    monkeypatch.setattr(listing, "decode", counted)
    out = tmp_path / "out"
    asked = ("repair", victim, "--images", folder, "--spc", 4, "--method", "none", "--out", out)
    run(*asked, "--test-images", 30)
    record = json.loads((out / "record.json").read_text())
    assert record["before"]["n"] == 30
    assert sum(read) == 4 * 10 + 30
    assert run(*asked, "--overwrite", "--test-images", 0) == 2


# --- what it writes -------------------------------------------------------------------------------


def test_plant_repair_evaluate_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    arguments = [
        "plant", "--attack", "badnets", "--size", 2, "--data", "digits",
        "--model", "excise:preactresnet18,width=4", "--recipe.epochs", 2, "--seed", 3,
        "--out", bundle, "--json",
    ]  # fmt: skip
    assert run(*arguments) == 0
    card = json.loads(capsys.readouterr().out)
    assert card == json.loads((bundle / "card.json").read_text())
    assert card["made"]["attack"]["size"] == 2
    assert card["measured"]["asr"]["n"] > 400
    # Two by two pixels of eight by eight, of which some digits have white ones there already.
    assert 0 < card["measured"]["visibility"]["pixels_changed"] <= 4 / 64
    given = (bundle / "model.safetensors").read_bytes()

    status = run("repair", bundle, "--images", "digits", "--trigger", bundle, "--spc", 10,
                 "--twin", bundle, "--out", out, *QUICK)  # fmt: skip
    said = capsys.readouterr().out
    assert status in (0, 1)
    assert str(out / "report.html") in said
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "card.json", "record.json", "report.html", "pictures"
    }  # fmt: skip
    assert (bundle / "model.safetensors").read_bytes() == given
    record = json.loads((out / "record.json").read_text())
    assert record["assumed"] == ["the true trigger"]
    assert record["spec"]["defense"]["inverter"] == {"name": "oracle"}
    assert record["spec"]["data"]["train_per_class"] == [9] * 10
    assert record["spec"]["data"]["validation_per_class"] == [1] * 10
    assert "never saw" in record["spec"]["data"]["pool"]
    assert record["before"]["n"] == 535
    model = record["spec"]["model"]
    assert (model["attack"], model["victim_seed"]) == (card["made"]["attack"], 3)
    assert model["weights"] == weights_hash(load_model(bundle))
    assert not any(f["name"] == "test-images-seen" for f in record["checks"])
    assert str(tmp_path) not in json.dumps({**record, "command": ""}), "a record names no path"

    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert (out / "report.html").read_bytes() == page

    capsys.readouterr()
    status = run("evaluate", bundle, out, "--images", "digits", "--trigger", bundle, "--json")
    compared = json.loads(capsys.readouterr().out)
    assert compared["after"]["acc"] == record["after"]["acc"]
    assert status == (0 if compared["verdict"]["ok"] else 1)
    capsys.readouterr()
    assert run("evaluate", out, "--images", "digits") == 0
    assert "clean accuracy" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_a_clean_twin_is_planted_by_the_same_command(tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    assert run("plant", "--attack", "none", "--data", "digits", "--out", twin, "--recipe.epochs", 1,
               "--model", "excise:preactresnet18,width=4") == 0  # fmt: skip
    card = json.loads((twin / "card.json").read_text())
    assert card["made"]["attack"] == {"name": "none"}
    assert card["measured"]["asr"] is None


def test_the_same_seed_gives_the_same_bytes(victim: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("repair", victim, "--images", "digits", "--trigger", victim, "--spc", 4,
            "--out", tmp_path / name, *QUICK)  # fmt: skip
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_defense_that_uses_no_trigger_needs_none(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("repair", victim, "--images", "digits", "--method", "none", "--spc", 4, "--out", out)
    record = json.loads((out / "record.json").read_text())
    assert record["spec"]["defense"] == {"name": "none"}
    assert record["assumed"] == []
    assert record["after"]["asr"] is None
    assert "cannot be told without its trigger" in " ".join(capsys.readouterr().out.split())


def test_a_strangers_weights_and_folder(
    victim: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights under a wrapper, pictures in folders, the trigger in words: no file of ours."""
    weights = tmp_path / "net.pt"
    state = {f"module.{k}": v for k, v in load_file(victim / "model.safetensors").items()}
    torch.save({"state_dict": state, "epoch": 3}, weights)
    status = run(
        "repair", weights, "--arch", "excise:preactresnet18,width=8", "--classes", 10,
        "--channels", 1, "--image-size", 8, "--mean", 0.305099, "--std", 0.375771,
        "--images", folder, "--trigger", PATCH, "--spc", 6, "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    captured = capsys.readouterr()
    assert status in (0, 1), captured.err
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    # 12 of each class less the 6 that were drawn: images the repair never used.
    assert record["before"]["n"] == 60
    assert record["before"]["acc"]["value"] > 0.9
    model = record["spec"]["model"]
    assert (model["attack"], model["victim_seed"]) == (None, None)
    assert model["weights"] == weights_hash(load_model(victim)), "however they were stored"
    assert "sorted by name, since no order was given" in " ".join(captured.err.split())


def test_without_images_left_it_says_so(
    victim: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("repair", victim, "--images", folder, "--trigger", victim, "--out", tmp_path / "out",
        *QUICK)  # fmt: skip
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["checks"][0]["name"] == "no-test-images"
    assert "flatter the repair" in " ".join(capsys.readouterr().out.split())


def test_a_class_map(victim: Path, folder: Path, tmp_path: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for i, name in enumerate(names):
        (folder / str(i)).rename(folder / name)
    order = tmp_path / "classes.json"
    order.write_text(json.dumps(names))
    arguments = ["evaluate", victim, "--images", folder, "--json"]
    assert run(*arguments, "--class-map", order) == 0


@pytest.fixture
def weights(planted: Planted, tmp_path: Path) -> Path:
    """The planted network as a weights file, whose outputs nobody named."""
    path = tmp_path / "net.safetensors"
    save_file(planted.model.body.state_dict(), path)
    return path


@pytest.fixture
def told(planted: Planted) -> list[object]:
    """What has to be said of a weights file of the planted network."""
    model = planted.model
    return ["--arch", model.arch, "--classes", 10, "--channels", 1, "--image-size", 8,
            "--mean", *model.mean, "--std", *model.std]  # fmt: skip


def accuracy(capsys: pytest.CaptureFixture[str], *arguments: object) -> float:
    capsys.readouterr()
    assert run("evaluate", *arguments, "--json") == 0
    return float(json.loads(capsys.readouterr().out)["before"]["acc"]["value"])


def renamed(folder: Path, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        (folder / str(i)).rename(folder / name)


#: Names whose order as text is that of the digits, and whose order as numbers is not.
TEXT_ORDER = ["1", "10", "11", "12", "2", "3", "4", "5", "6", "7"]


def test_a_repaired_bundle_knows_which_class_each_output_is(
    weights: Path,
    told: list[object],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for digit in range(10):
        (folder / str(digit)).rename(folder / f"d{digit}")
    for digit, name in enumerate(TEXT_ORDER):
        (folder / f"d{digit}").rename(folder / name)
    given = accuracy(capsys, weights, "--images", folder, *told)
    assert given > 0.9
    out = tmp_path / "out"
    assert run("repair", weights, "--images", folder, "--spc", 4, "--method", "none",
               "--out", out, *told) == 0  # fmt: skip
    assert json.loads((out / "card.json").read_text())["classes"] == TEXT_ORDER
    assert accuracy(capsys, out, "--images", folder) == given


def test_names_of_a_bundle_stand_whatever_else_is_said_of_it(
    planted: Planted,
    told: list[object],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"{9 - i}-th" for i in range(10)]  # as text the other way round
    renamed(folder, names)
    model = copy.deepcopy(planted.model)
    model.classes = tuple(names)
    bundle = tmp_path / "named"
    save_bundle(bundle, model, {})
    plain = accuracy(capsys, bundle, "--images", folder)
    assert plain > 0.9
    assert accuracy(capsys, bundle, "--images", folder, *told) == plain


def test_test_images_of_other_classes_are_not_matched_by_their_number(
    weights: Path,
    told: list[object],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held_out = tmp_path / "held-out"
    shutil.copytree(folder, held_out)
    (held_out / "0").rename(held_out / "zero")
    said = refused(capsys, "repair", weights, "--images", folder, "--test", held_out,
                   "--method", "none", "--out", tmp_path / "out", *told)  # fmt: skip
    assert "zero" in said


def test_figures_of_the_defenders_own_images_void_the_verdict(
    victim: Path, folder: Path, tmp_path: Path
) -> None:
    asked = ("repair", victim, "--images", folder, "--method", "none", "--out", tmp_path / "out")
    assert run(*asked, "--test", folder) == 1
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["verdict"]["status"] == "void"
    assert "test images too" in record["verdict"]["sentence"]


def test_evaluate_says_when_network_and_images_do_not_fit(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((victim / "card.json").read_text())
    (victim / "card.json").write_text(json.dumps(card | {"std": [9.0]}))
    assert run("evaluate", victim, "--images", "digits") == 0
    assert "not prepared as in training" in " ".join(capsys.readouterr().out.split())
    assert run("evaluate", victim, victim, "--images", "digits", "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["status"] == "void"
    assert {one["name"] for one in said["checks"]} >= {"unlike-training"}


def test_a_trigger_that_is_not_the_victims_voids_the_verdict(victim: Path, tmp_path: Path) -> None:
    card = json.loads((victim / "card.json").read_text())
    card["measured"] = {"asr": {"value": 0.98, "count": 98, "n": 100}}
    (victim / "card.json").write_text(json.dumps(card))
    asked = ("repair", victim, "--images", "digits", "--spc", 2, "--method", "none")
    status = run(*asked, "--trigger", "badnets,size=1,row=0,column=0,target=5",
                 "--out", tmp_path / "out")  # fmt: skip
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert (status, record["verdict"]["status"]) == (1, "void")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a trigger for class 5" in page
    run(*asked, "--out", tmp_path / "untold")
    assert "single target" not in (tmp_path / "untold" / "report.html").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "fp", "--method", "none"],
        ["--method=fp", "--method=none"],
        ["--method", "none", "--curve_images", "0"],
    ],
)
def test_what_is_asked_for_is_what_runs(victim: Path, tmp_path: Path, flags: list[str]) -> None:
    out = tmp_path / "out"
    assert run("repair", victim, "--images", "digits", "--spc", 2, *flags, "--out", out) in (0, 1)
    record = json.loads((out / "record.json").read_text())
    assert record["spec"]["defense"] == {"name": "none"}


def test_presets_are_read_however_the_flag_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, flag in enumerate(("--recipe-preset", "--recipe_preset")):
        assert run("plant", "--attack", "none", "--data", "digits", "--model",
                   "excise:preactresnet18,width=2", flag, "fast", "--recipe.epochs", 1,
                   "--out", tmp_path / str(i), "--json") == 0  # fmt: skip
    made = [json.loads((tmp_path / name / "card.json").read_text())["made"] for name in "01"]
    assert made[0]["recipe"] == made[1]["recipe"]
    assert made[0]["recipe"]["learning_rate"] == 0.1


def test_a_repaired_victims_defender_is_kept_from_what_it_was_trained_on_too(
    victim: Path, tmp_path: Path
) -> None:
    given = victim
    for name in ("first", "second"):
        out = tmp_path / name
        run("repair", given, "--images", "digits", "--spc", 2, "--method", "none", "--out", out)
        record = json.loads((out / "record.json").read_text())
        assert "never saw" in record["spec"]["data"]["pool"]
        given = out


@pytest.mark.parametrize("name", ["pictures", "pictures/", "./pictures", "elsewhere/../pictures"])
def test_one_folder_has_many_names(
    victim: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    card = json.loads((victim / "card.json").read_text())
    card["made"]["data"]["source"] = str(folder)
    (victim / "card.json").write_text(json.dumps(card))
    run("repair", victim, "--images", name, "--spc", 2, "--method", "none", "--out", "out")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert "never saw" in record["spec"]["data"]["pool"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("made", "here"),
        ("made", {"data": {"source": "digits", "victim_images": 0.5}}),
        ("made", {"seed": 0, "data": ["digits"]}),
        ("made", {"seed": 0, "data": {"source": "digits", "victim_images": None}}),
        ("measured", ["asr"]),
        ("measured", {"asr": 0.5}),
    ],
)
def test_a_card_that_says_nonsense_of_its_making_is_refused(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    card = json.loads((victim / "card.json").read_text()) | {key: value}
    (victim / "card.json").write_text(json.dumps(card))
    said = refused(capsys, "repair", victim, "--images", "digits", "--spc", 2, "--method", "none",
                   "--out", tmp_path / "out")  # fmt: skip
    assert f"a card whose '{key}'" in said


@pytest.mark.parametrize(
    ("there", "goes_on"), [(".victim.checkpoints", True), ("thesis.txt", False)]
)
def test_an_interrupted_demo_goes_on_and_replaces_nobody_elses_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, there: str, goes_on: bool
) -> None:
    def planted(*arguments: object, **named: object) -> None:
        raise DataError("a test", got="no training", remedy="")

    monkeypatch.setattr(demo, "plant", planted)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / there).touch()
    said = refused(capsys, "demo", "--out", tmp_path / "demo")
    assert ("no training" in said) is goes_on
    assert (tmp_path / "demo" / there).exists()


@pytest.mark.parametrize("name", ["report.html", "record.json", "card.json"])
def test_overwrite_takes_no_directory_of_somebody_elses(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "project"
    out.mkdir()
    (out / name).write_text('{"results": []}')
    (out / "main.py").write_text("print()")
    asked = ("repair", victim, "--images", "digits", "--spc", 2, "--method", "none", "--overwrite")
    assert "a directory that Excise wrote" in refused(capsys, *asked, "--out", out)
    assert (out / "main.py").exists()
    assert "got" in refused(capsys, *asked, "--out", out / "main.py")
    assert (out / "main.py").read_text() == "print()"


def test_the_directory_a_command_runs_in_is_not_its_output(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    here = tmp_path / "empty" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    asked = ("repair", victim, "--images", "digits", "--spc", 2, "--method", "none", "--overwrite")
    for out in (".", here, ".."):
        assert "an output directory of its own" in refused(capsys, *asked, "--out", out)


@pytest.mark.filterwarnings("default")
def test_damaged_pictures_can_be_left_out(
    victim: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "3" / "0.png").write_bytes(b"no picture")
    assert "--skip-unreadable" in refused(capsys, "evaluate", victim, "--images", folder)
    assert run("evaluate", victim, "--images", folder, "--skip-unreadable", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["before"]["n"] == 119
    assert "warning: left out 1 of 120 pictures" in " ".join(said.err.split())
    assert "UserWarning" not in said.err


def test_a_large_file_can_be_allowed(
    weights: Path, told: list[object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", weights, "--images", folder, *told]
    said = refused(capsys, *asked, "--max-bytes", 1000)
    assert f"--max-bytes {weights.stat().st_size}" in said
    assert run(*asked, "--max-bytes", weights.stat().st_size) == 0


# --- list and help --------------------------------------------------------------------------------


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from excise.cli import main; status = main(['--help']);"
        "sys.exit(status or bool({'torch', 'tyro', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    assert f"excise {name}" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "attacks") == 0
    assert "badnets" in capsys.readouterr().out
    assert run("list", "detectors") == 0
    assert "frequency" in capsys.readouterr().out
    assert run("list", "scanners") == 0
    assert "mm-bd" in capsys.readouterr().out
    assert run("list", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {
        "attacks", "defenses", "inverters", "scanners", "detectors", "models", "data",
    }  # fmt: skip
    scanner = next(row for row in said["scanners"] if row["name"] == "neural-cleanse")
    assert {f["name"]: f["default"] for f in scanner["fields"]}["threshold"] == "2.0"
    defense = next(row for row in said["defenses"] if row["name"] == "grad-prune")
    fields = {f["name"]: f for f in defense["fields"]}
    assert fields["patience"]["default"] == "10"
    assert fields["patience"]["help"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("excise 0.")


# --- what it refuses: status 2, a message, no traceback, nothing lost -----------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join((captured.err + captured.out).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repare"], "Did you mean 'repair'?"),
        (["repair"], "Required options"),
        (["list", "atacks"], "attacks"),
        (["plant", "--attack", "badnet", "--data", "digits"], "Did you mean 'badnets'?"),
        (["plant", "--attack", "badnets", "--attack-preset", "feild"], "Did you mean 'field'?"),
        (["plant", "--recipe-preset", "quick"], "Known: fast, published."),
        (["plant", "--data", "digits", "--size", "9"], "a patch that fits into 8 × 8 pixels"),
        (["plant", "--data", "digits", "--target", "10", "--size", "2"], "a target from 0 to 9"),
        (["plant", "--data", "digits", "--poison-ratio", "2"], "less than or equal to 1"),
        (["plant", "--data", "digits", "--poison-ratio", "0.0001"], "a poison ratio that gives"),
        (["plant", "--data", "digist"], "digits"),
        (["plant", "--data", "digits", "--model", "excise:preactresnet19"], "preactresnet18"),
        (["plant", "--data", "digits", "--size", "2", "--recipe.epohcs", "2"], "--recipe.epochs"),
        (["plant", "--data", "digits", "--device", "tpu9"], "a device this machine has"),
        (["plant", "--data", "digits", "--device", "meta"], "a device this machine has"),
    ],
)
def test_bad_words(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if arguments[0] == "plant":
        arguments = [*arguments, "--out", str(out)]
        if "--data" not in arguments:
            arguments += ["--data", "digits"]
    assert message in refused(capsys, *arguments)
    assert not out.exists()


def test_data_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EXCISE_DATA", raising=False)
    said = refused(capsys, "plant", "--data", "cifar10", "--out", tmp_path / "out")
    assert "EXCISE_DATA" in said
    assert "torchvision:CIFAR10" in said


def repairing(victim: Path, tmp_path: Path, **changes: object) -> list[object]:
    flags: dict[str, object] = {
        "method": "grad-prune", "images": "digits", "trigger": victim, "spc": 4,
        "out": tmp_path / "out", **changes,
    }  # fmt: skip
    given = flags.pop("model", victim)
    pairs = [(f"--{key.replace('_', '-')}", value) for key, value in flags.items()]
    return ["repair", given, *(word for pair in pairs if pair[1] is not None for word in pair)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trigger": None}, "--trigger, which --inverter oracle is told"),
        ({"trigger": "badnets,size=2"}, "also row, column, target"),
        ({"trigger": "badnets,size=9,row=0,column=0,target=0"}, "fits into 8 × 8 pixels"),
        ({"trigger": "badnets,size=2,row=7,column=0,target=0"}, "a patch inside the 8 × 8 image"),
        ({"trigger": "badnets,size=2,row=0,column=0,target=77"}, "a target from 0 to 9"),
        ({"trigger": "badnets,size=2,row=0,colum=0,target=0"}, "Did you mean 'column'?"),
        ({"trigger": "none"}, "an attack whose trigger can be said in words"),
        ({"spc": 1}, "2"),
        ({"spc": 1000}, "1000"),
        ({"images": "nowhere/at/all"}, "nowhere/at/all"),
        ({"method": "grad-prone"}, "Did you mean 'grad-prune'?"),
        ({"inverter": "oracel"}, "Did you mean 'oracle'?"),
        ({"method": "none", "inverter": "oracle"}, "--method none, which uses none. Leave"),
        ({"preset": "fats"}, "expected a preset of grad-prune, got 'fats'. Known: published."),
        ({"patience": -1}, "greater than or equal to 0"),
        ({"max_accuracy_dorp": 0.2}, "--max-accuracy-drop"),
        ({"model": "no/such/file.pt", "arch": "torchvision:resnet18"}, "no/such/file.pt"),
        ({"twin": "no/such/bundle"}, "no/such/bundle"),
    ],
)
def test_bad_repairs(
    changes: dict[str, Any],
    message: str,
    victim: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, *repairing(victim, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_bad_folders(
    victim: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = repairing(victim, tmp_path, images=folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in refused(capsys, *repairing(victim, tmp_path, images=empty))

    (folder / "4" / "7.png").write_bytes(b"not a picture")
    assert "7.png" in refused(capsys, *asked)
    (folder / "4" / "7.png").unlink()

    for picture in list((folder / "6").iterdir())[2:]:
        picture.unlink()
    assert "6" in refused(capsys, *asked), "fewer images of a class than --spc"

    shutil.rmtree(folder / "6")
    assert "'6'" in refused(capsys, *asked), "a class without images"

    (folder / "6").mkdir()
    (folder / "eleven").mkdir()
    for name in ("6", "eleven"):
        Image.new("L", (8, 8)).save(folder / name / "0.png")
    assert "eleven" in refused(capsys, *asked)


def test_bad_networks(victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def weights(name: str, state: dict[str, torch.Tensor]) -> Path:
        save_file(state, tmp_path / name)
        return tmp_path / name

    state = load_file(victim / "model.safetensors")
    told = {
        "arch": "excise:preactresnet18,width=8", "classes": 10, "channels": 1, "image_size": 8,
        "trigger": PATCH,
    }  # fmt: skip

    def said(path: Path, **changes: object) -> str:
        return refused(capsys, *repairing(victim, tmp_path, model=path, **{**told, **changes}))

    broken = {**state, "linear.bias": torch.full((10,), float("nan"))}
    assert "linear.bias" in said(weights("nan.safetensors", broken))
    whole = weights("whole.safetensors", state)
    assert "classes=10?" in said(whole, classes=43)
    assert "conv1.weight" in said(whole, channels=3)
    assert "(16, 1, 3, 3)" in said(whole, arch="excise:preactresnet18,width=16")
    assert "preactresnet18" in said(whole, arch="excise:preactresnet19")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:1000])
    assert "cut.safetensors" in said(tmp_path / "cut.safetensors")


def flat_network(num_classes: int) -> nn.Module:
    """A network without a convolution; named on a command line below."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def test_a_network_without_convolutions(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "flatnets.py").write_text(
        "from torch import nn\n"
        "def flat(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    save_file(
        {k.replace("body.", ""): v for k, v in flat_network(10).state_dict().items()},
        tmp_path / "flat.safetensors",
    )
    said = refused(
        capsys,
        *repairing(
            victim, tmp_path, model=tmp_path / "flat.safetensors", arch="flatnets:flat",
            classes=10, channels=1, image_size=8, trigger=PATCH,
        ),
    )  # fmt: skip
    assert "a network with convolutions" in said


# --- safety of work -------------------------------------------------------------------------------


def test_an_existing_output_is_kept(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in victim.iterdir()}
    said = refused(capsys, *repairing(victim, tmp_path, out=victim))
    assert "apart from what is read" in said
    shutil.copytree(victim, tmp_path / "other")
    assert "--overwrite" in refused(capsys, *repairing(victim, tmp_path, out=tmp_path / "other"))
    assert {p.name: p.read_bytes() for p in victim.iterdir()} == before
    assert run(*repairing(victim, tmp_path, out=victim), "--overwrite", *QUICK) == 2
    assert {p.name: p.read_bytes() for p in victim.iterdir()} == before
    run(*repairing(victim, tmp_path, out=tmp_path / "other"), "--overwrite", *QUICK)
    assert (tmp_path / "other" / "record.json").is_file()


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_interrupted(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("excise.console.Story.round", interrupt)
    assert run(*repairing(victim, tmp_path)) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr("excise.experiments.repair.write_report", interrupt)
    assert run(*repairing(victim, tmp_path)) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["victim"]


def test_an_interrupted_planting_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first epoch and started again, it ends with the same weights."""
    asked = [
        "plant", "--data", "digits", "--size", 2, "--model", "excise:preactresnet18,width=4",
        "--recipe.epochs", 3,
    ]  # fmt: skip
    assert run(*asked, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr("excise.console.Story.round", interrupt)
        assert run(*asked, "--out", tmp_path / "resumed") == 130
    assert not (tmp_path / "resumed").exists()
    assert run(*asked, "--out", tmp_path / "resumed") == 0
    whole, resumed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["resumed", "whole"]


def test_an_unexpected_failure(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("excise.commands.repair.run_repair", fail)
    assert run(*repairing(victim, tmp_path)) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "please report it" in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    said = refused(capsys, *repairing(victim, tmp_path, out=tmp_path / "file" / "out"), *QUICK)
    assert "a writable place for the output directory" in said


def test_the_api_of_the_readme(planted: Planted, folder: Path) -> None:
    import excise

    clean = excise.load_images(folder)
    method = excise.GradPrune(
        inverter=excise.Oracle(planted.backdoor.trigger), patience=1, max_tune_epochs=1
    )
    result = excise.repair(planted.network(), clean, method=method, spc=10, seed=0)
    measured = excise.evaluate(
        result.model, planted.test, trigger=planted.backdoor.trigger, target=3
    )
    assert measured.asr is not None
    pair = (clean.images, clean.labels)
    again = excise.repair(planted.network(), pair, method=method, spc=10, seed=0)
    assert again.edits == result.edits
    whole = excise.repair(planted.network(), clean, method=method)
    assert whole.model is not None
    assert set(excise.__all__) <= set(dir(excise))
    assert build_model("excise:vgg19_bn,width=4", classes=2, rng=Rng(0)) is not None
    with pytest.raises(AttributeError, match="no attribute 'repare'"):
        excise.repare  # noqa: B018


@pytest.mark.parametrize("inside", ["", "images"])
def test_nothing_that_is_read_is_ever_overwritten(tmp_path, capsys, inside):
    folder = tmp_path / "mine" / inside
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"precious")
    out = tmp_path / "mine"
    status = run("scan", "net.safetensors", "--images", folder, "--out", out, "--overwrite")
    assert status == 2
    assert "an output directory apart from what is read" in capsys.readouterr().err
    assert (folder / "a" / "1.png").read_bytes() == b"precious"


def test_a_directory_that_is_not_ours_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("ten years")
    status = run("scan", "net.safetensors", "--images", "x", "--out", tmp_path, "--overwrite")
    assert status == 2
    assert "a directory that Excise wrote" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_settings_of_an_inverter_are_taken(tmp_path, monkeypatch):
    """``--inverter.effort`` as well as ``--inverter combined,effort=…``."""
    from excise.commands import repair

    seen = []

    def question(asked, *_):
        seen.append(asked.options.inverter.effort)
        raise KeyboardInterrupt

    monkeypatch.setattr(repair, "_question", question)
    run("repair", "x", "--images", "y", "--out", tmp_path / "o", "--inverter.effort", "0.25")
    assert seen == [0.25]


def test_a_command_told_to_end_cleans_up(monkeypatch, capsys):
    from excise.commands import report

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(report, "run", lambda _: signal.raise_signal(signal.SIGTERM))
    assert run("report") == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m excise list --json 2>{tmp_path / 'err'}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 1"], capture_output=True, check=False
    )
    assert done.stdout == b"{"
    assert (tmp_path / "err").read_text() == ""
    assert done.returncode in (0, 141)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_without_greek_letters_gets_question_marks(encoding):
    done = subprocess.run(
        [sys.executable, "-m", "excise", "repair", "--help"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"usage: excise repair" in done.stdout
