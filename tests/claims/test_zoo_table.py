"""The script that makes the tables of docs/zoo.md: what it shows, and what it adds to cards."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("zoo_table")


@pytest.fixture
def zoo(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A zoo of nothing, whose cells' bundles lie in a directory of the test's own."""
    module = importlib.import_module("zoo")
    monkeypatch.setattr(module, "VICTIMS", tmp_path)
    return module


def rate(value: float) -> dict[str, Any]:
    return {"value": value, "low": 0.0, "high": 1.0, "count": 1, "n": 1}


def card(cell: Any, **measured: Any) -> None:
    cell.out.mkdir(parents=True)
    said = {"arch": f"{cell.arch},width={cell.width}", "measured": measured}
    (cell.out / "card.json").write_text(json.dumps(said))


def test_a_row_of_every_kind(script: ModuleType, zoo: Any) -> None:
    twin = zoo.Cell("twin", "cifar10", "none", 10)
    whole, older, absent, other = (
        zoo.Cell(f"{attack}-1", "cifar10", attack, 10, 1, twin=twin.name)
        for attack in ("badnets", "blended", "lf", "sig")
    )
    longer = zoo.Cell("bpp-1", "cifar10", "bpp", 40, 1, twin=twin.name)
    seen = {"mean_change": 1.185, "psnr": None, "ssim": 0.9661, "high_frequency_share": 0.056}
    rates = {"acc": rate(0.8021), "asr": rate(0.96966), "ra": rate(0.026)}
    every = [twin, whole, older, absent, other, longer]
    card(whole, **rates, visibility=seen)
    assert "| not run | 97.0 |" in script.victims(every), "the twin is not there yet"
    card(twin, acc=rate(0.8171))
    card(older, **rates)
    card(other, **rates)
    card(longer, **rates)
    said = json.loads((other.out / "card.json").read_text()) | {"arch": "excise:x,width=64"}
    (other.out / "card.json").write_text(json.dumps(said))
    assert script.victims(every).splitlines()[2:] == [
        "| badnets | cifar10 | 1 | 10 | 80.2 | 81.7 | 97.0 | 2.6 | 1.19 | – | 0.966 | 0.056 |",
        "| blended | cifar10 | 1 | 10 | 80.2 | 81.7 | 97.0 | 2.6 | – | – | – | – |",
        "| lf | cifar10 | 1 | 10 | not run |  |  |  |  |  |  |  |",
        "| sig | cifar10, excise:x,width=64 | 1 | 10 | 80.2 | 81.7 | 97.0 | 2.6 | – | – | – | – |",
        "| bpp | cifar10 | 1 | 40 | 80.2 | 81.7 (10 epochs) | 97.0 | 2.6 | – | – | – | – |",
    ]


def test_clean_networks_are_summed_up(script: ModuleType, zoo: Any) -> None:
    small = [zoo.Cell(f"small/{i}", "digits", "none", 20, i, width=8) for i in range(3)]
    large = zoo.Cell("large", "gtsrb", "none", 20, arch=zoo.VGG)
    for cell, acc in zip(small, (0.95, 0.879), strict=False):
        card(cell, acc=rate(acc))
    assert script.clean([*small, large]).splitlines()[2:] == [
        "| digits, PreActResNet-18 of width 8 | 20 | 2 | 3 | 87.9–95.0 |",
        "| gtsrb, VGG-19-BN of width 16 | 20 | 0 | 1 | not run |",
    ]


def test_every_cell_has_its_place(script: ModuleType, zoo: Any) -> None:
    every = zoo.cells()
    attacks = [cell for cell in every if cell.attack != "none"]
    assert script.victims(every).count("not run") == len(attacks)
    planned = sum(int(line.split(" | ")[3]) for line in script.clean(every).splitlines()[2:])
    assert planned == len(every) - len(attacks)


def test_a_page_keeps_what_stands_around_its_tables(script: ModuleType) -> None:
    page = f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n"
    written = script.page_with(page, "| new |")
    assert written == f"before\n{script.BEGIN}\n\n| new |\n\n{script.END}\nafter\n"
    assert script.page_with(written, "| new |") == written
    with pytest.raises(SystemExit, match="expected the lines"):
        script.page_with("no markers", "| new |")


def test_only_what_is_missing_is_measured(
    script: ModuleType, zoo: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from excise.attacks import Victim, load_victim, save_victim
    from excise.data import load_data
    from excise.evaluation import visibility

    old, new, absent = (zoo.Cell(name, "digits", "badnets", 20) for name in ("old", "new", "no"))
    clean = zoo.Cell("clean", "digits", "none", 20)
    victim = Victim(planted.model, planted.backdoor, None)
    save_victim(old.out, victim, {"measured": {"acc": rate(0.9)}, "made": {"seed": 7}})
    save_victim(new.out, victim, {"measured": {"visibility": {"mean_change": 5.0}}})
    card(clean, acc=rate(0.9))
    before = json.loads((old.out / "card.json").read_text())
    script.remeasure([old, new, absent, clean])
    assert capsys.readouterr().out.startswith("old: mean change ")
    test = load_data("digits").test
    assert test is not None
    seen = visibility(test, planted.backdoor.trigger).to_json()
    after = json.loads((old.out / "card.json").read_text())
    assert after["measured"].pop("visibility") == pytest.approx(seen)
    assert after == before, "nothing else changed"
    load_victim(old.out)
    assert json.loads((new.out / "card.json").read_text())["measured"] == {
        "visibility": {"mean_change": 5.0}
    }
    assert "visibility" not in json.loads((clean.out / "card.json").read_text())["measured"]
    script.remeasure([old, new, absent, clean])
    assert capsys.readouterr().out.startswith("nothing to measure")
