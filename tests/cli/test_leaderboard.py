"""`excise leaderboard`: tables, files, and what it says when something is wrong."""

import csv
import json
from pathlib import Path

import pytest
from tests.leaderboard.stores import HOSTILE, failed, put, record, rich

from excise.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return rich(tmp_path / "store")


def run(*arguments: object) -> int:
    return main(["leaderboard", *map(str, arguments)])


def test_the_table_says_who_is_best_and_on_what(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.index("clp") < said.index("ft") < said.index("none")
    assert "23 runs each, of 24 settings tried" in said
    assert "ft lacks 1 setting, such as wanet · SPC 10 · seed 3" in said
    assert "1 run failed" in said
    assert "2,000 bootstrap resamples of the 12 victims" in said
    assert "before repair" in said
    assert "clean twin" in said


def test_every_output_at_once(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "markdown", "page")}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert run(store, "--json", *flags) == 0
    said = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in said["standings"]] == ["clp", "ft", "none"]
    assert said["shared"] == 23
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [row["name"] for row in rows] == ["clp", "ft", "none"]
    assert float(rows[0]["asr_mean"]) == pytest.approx(
        said["standings"][0]["figures"]["asr"]["mean"]
    )
    lines = files["markdown"].read_text().splitlines()
    assert {line.count("|") for line in lines[:5]} == {10}
    assert "<!DOCTYPE html>" in files["page"].read_text()
    assert run(store, *flags) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(store, *flags, "--overwrite") == 0


def test_filters_axes_and_orders(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "--where", "attack=wanet", "--where", "spc=2", "--by", "seed",
               "--order", "asr", "--json") == 0  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert said["where"] == ["attack=wanet", "spc=2"]
    assert said["by"] == ["seed"]
    assert [s["name"] for s in said["standings"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--where", "attack=badnet"], "Did you mean 'badnets'?"),
        (["--where", "atack=badnets"], "Did you mean 'attack'?"),
        (["--by", "defence"], "Did you mean 'defense'?"),
        (["--order", "asrr"], "Did you mean"),
        (["--coverage", "2"], "coverage"),
        (["--page", "."], "output file"),
        (["--csv", "/dev/null/x.csv"], "written to"),
    ],
)
def test_bad_input_exits_2(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(store, *arguments) == 2
    assert words in capsys.readouterr().err


def test_an_empty_store_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(put(tmp_path / "s")) == 2
    assert "an empty store. Run a sweep first" in capsys.readouterr().err
    assert run(tmp_path / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(put(tmp_path / "f", failed("ft"))) == 2
    assert "1 failed" in capsys.readouterr().err


def test_hostile_names_stay_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = put(tmp_path / "s", record(HOSTILE), record("=HYPERLINK(1)"), record("a|b"))
    table, lines = tmp_path / "t.csv", tmp_path / "t.md"
    assert run(store, "--csv", table, "--markdown", lines) == 0
    assert "\x1b" not in capsys.readouterr().out
    names = [row["name"] for row in csv.DictReader(table.read_text().splitlines())]
    assert "'=HYPERLINK(1)" in names
    text = lines.read_text()
    assert "<script" not in text.replace("\\<", "")
    assert "a\\|b" in text
