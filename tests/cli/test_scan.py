"""``excise scan`` as a person meets it: what it writes, what it refuses, its exit status."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from excise import load_images, repair, scan
from excise.attacks import Victim, save_victim
from excise.cli import main
from excise.defenses import SoftPrune
from excise.detection import combined
from excise.models import save_bundle
from excise.testing import Planted

QUICK = ["--effort", "0.05"]


@pytest.fixture
def victim(planted: Planted, tmp_path: Path) -> Path:
    """The planted network as a bundle, its card saying what data it was made from."""
    out = tmp_path / "victim"
    made = {"seed": 0, "data": {"source": "digits", "victim_images": 0.5}, "attack": {"name": "x"}}
    save_victim(out, Victim(planted.model, planted.backdoor, None), {"made": made})
    return out


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(("statistic", "status"), [(0.005, 1), (99.0, 0)])
def test_it_writes_record_page_and_pictures_and_its_status_is_the_verdict(
    victim: Path, tmp_path: Path, capsys, monkeypatch, statistic: float, status: int
) -> None:
    known = [
        {"family": "excise:preactresnet18", "statistic": statistic * (1 + i / 30), "classes": 10,
         "pixels_a_side": 8, "images_a_class": 10}
        for i in range(30)
    ]  # fmt: skip
    monkeypatch.setattr(combined, "calibration", lambda: known)
    given, out = (victim / "model.safetensors").read_bytes(), tmp_path / "out"
    assert run("scan", victim, "--images", "digits", "--spc", 10, "--out", out, *QUICK) == status
    said = capsys.readouterr().out
    record = json.loads((out / "record.json").read_text())
    assert record["verdict"]["sentence"] in " ".join(said.split())
    assert record["verdict"]["ok"] is (status == 0)
    assert str(out / "report.html") in said
    assert len(record["classes"]) == 10
    assert record["tried_on"]["unseen"]
    assert record["spec"]["scanner"]["name"] == "combined"
    assert record["spec"]["data"]["per_class"] == [10] * 10
    assert record["triggers"]
    for one in record["triggers"]:
        assert one["rate"]["n"] > 100
        assert all((out / shown["residual"]).is_file() for shown in one["shown"])
    assert (victim / "model.safetensors").read_bytes() == given
    assert "<script" not in (out / "report.html").read_text()


def test_images_prepared_otherwise_than_in_training_void_a_scan_and_a_repair(
    planted: Planted, tmp_path: Path, capsys
) -> None:
    weights = tmp_path / "net.pt"
    torch.save(planted.model.state_dict(), weights)
    asked = (weights, "--arch", "excise:preactresnet18,width=8", "--classes", 10, "--channels", 1,
             "--image-size", 8, "--mean", 0.3, "--std", 2.0, "--images", "digits", "--spc", 5,
             "--out")  # fmt: skip
    assert run("scan", *asked, tmp_path / "scan", *QUICK) == 2
    assert "this says nothing:" in " ".join(capsys.readouterr().out.split())
    assert run("repair", *asked, tmp_path / "repair", "--method", "none") == 1
    assert "not prepared as in training" in capsys.readouterr().out
    for part in ("scan", "repair"):
        verdict = json.loads((tmp_path / part / "record.json").read_text())["verdict"]
        assert (verdict["status"], verdict["ok"]) == ("void", False)
        assert (tmp_path / part / "report.html").is_file()


def test_json_is_the_record_and_another_scanner_has_its_own_options(
    victim: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    status = run("scan", victim, "--images", "digits", "--spc", 5, "--out", out, "--json",
                 "--method", "mm-bd", "--steps", 8, "--starts", 2)  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "record.json").read_text())
    assert status == (0 if record["verdict"]["ok"] else 1)
    assert record["triggers"] == []
    assert record["spec"]["scanner"]["steps"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mmbd"], "mm-bd"),
        (["--preset", "fastest"], "a preset of combined"),
        (["--alarm-rate", "0"], "greater than or equal to 0.001"),
        (["--alarm-rate", "2"], "less than 1"),
        (["--effort", "0"], "greater than 0"),
        (["--spc", "100000"], "images"),
        (["--efort", "1"], "--effort"),
    ],
)
def test_bad_words(victim: Path, tmp_path: Path, capsys, arguments, message) -> None:
    out = tmp_path / "out"
    assert run("scan", victim, "--images", "digits", "--out", out, *arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_an_output_that_exists_is_kept(victim: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    assert run("scan", victim, "--images", "digits", "--out", out) == 2
    assert (out / "mine").read_text() == "kept"


def test_a_network_that_answers_infinity_is_refused(
    planted: Planted, tmp_path: Path, capsys
) -> None:
    network = planted.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1e30)
    save_bundle(tmp_path / "broken", network, {})
    out = tmp_path / "out"
    assert run("scan", tmp_path / "broken", "--images", "digits", "--out", out, *QUICK) == 2
    assert "finite" in capsys.readouterr().err


def test_the_functions_need_a_network_and_images_alone(planted: Planted, monkeypatch) -> None:
    monkeypatch.setattr("excise.api.CombinedScan", lambda: combined.CombinedScan(effort=0.05))
    held = planted.data.everything()
    clean = load_images((held.images, held.labels))
    said = scan(planted.network(), clean)
    assert len(said.per_class) == 10
    monkeypatch.setattr("excise.api.Combined", lambda: quick())
    monkeypatch.setattr("excise.api.SoftPrune", functools.partial(SoftPrune, steps=4))
    result = repair(planted.network(), clean)
    assert result.assumed == ()
    assert result.model is not planted.model


def quick():
    from excise.inversion import Combined

    return Combined(effort=0.05, least=0)


def test_a_repair_needs_no_trigger_and_says_toward_which_class_it_cut(
    victim: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    status = run("repair", victim, "--images", "digits", "--spc", 5, "--out", out,
                 "--inverter", "combined,effort=0.05,least=0", "--steps", 4)  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    record = json.loads((out / "record.json").read_text())
    assert status == (0 if record["verdict"]["ok"] else 1)
    assert record["verdict"]["status"] in ("clean-only", "harmed")
    assert record["spec"]["defense"]["name"] == "soft-prune"
    assert record["spec"]["defense"]["inverter"]["least"] == 0
    assert "Unlearned " in said
    assert "toward '" in said
    assert record["assumed"] == []


def test_where_no_class_stands_out_the_network_stays_as_it_is(
    victim: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    run("repair", victim, "--images", "digits", "--spc", 5, "--out", out,
        "--inverter", "combined,effort=0.05,least=99")  # fmt: skip
    assert "No trigger was recovered, so nothing was cut." in capsys.readouterr().out
    given = load_file(victim / "model.safetensors")
    repaired = load_file(out / "model.safetensors")
    assert all(torch.equal(given[name], repaired[name]) for name in given)
