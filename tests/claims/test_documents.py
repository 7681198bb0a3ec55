"""What the documentation states stands in the records it is made from."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from excise.attacks import CleanLabel
from excise.registry import rows

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]


def test_the_tables_of_grad_prune_are_made_from_its_records() -> None:
    path = ROOT / "benchmarks" / "grad_prune_cifar10.py"
    spec = importlib.util.spec_from_file_location("grad_prune_cifar10", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, table in {
        "docs/methods/grad-prune.md": script.table(),
        "README.md": script.summary(),
    }.items():
        assert "not run" not in table
        assert table in (ROOT / name).read_text(), f"{name}: run the script with --table"


def test_the_cost_of_a_round_is_as_recorded() -> None:
    rows = json.loads((ROOT / "benchmarks" / "records" / "pruning-round.json").read_text())["rows"]
    text = (ROOT / "docs" / "methods" / "grad-prune.md").read_text()
    for row in rows:
        said = f"| {row['width']} | {row['seconds_a_round']:.2f} | {row['seconds_floor']:.2f} |"
        assert said in text
        assert f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})" in text


def test_the_tables_of_the_zoo_are_made_from_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("zoo_table")
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert page == script.page_with(page, script.tables()), (
        "run: python benchmarks/zoo_table.py --write"
    )


def test_the_tables_of_the_defenses_are_made_from_their_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("defense_table")
    page = (ROOT / "docs" / "defenses.md").read_text(encoding="utf-8")
    for grid in script.MARKS:
        assert page == script.page_with(page, script.records(grid), grid), (
            "run: python benchmarks/defense_table.py --write"
        )


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("frequency_detector", "docs/methods/frequency.md"),
        ("scan_networks", "docs/scan.md"),
        ("trigger_free", "docs/methods/soft-prune.md"),
        ("ablations", "docs/methods/soft-prune.md"),
        ("best_published", "docs/defenses.md"),
        ("against_peers", "docs/speed.md"),
        ("outcomes_of_peers", "docs/defenses.md"),
    ],
)
def test_the_tables_of_a_page_are_made_from_its_records(
    name: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module(name)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == script.page_with(text), f"run: python benchmarks/{name}.py --write"


@pytest.mark.parametrize(
    ("peer", "source", "message"),
    [
        ("Peer", None, "a checkout of BackdoorBench, got .* without .*/clp.py. Give its path"),
        ("Peer", "import no_such_package", "No module named 'no_such_package'.* Install it beside"),
        ("Peer", "import utils.no_such_part", "expected a whole checkout .* Check it out anew"),
        ("Fork", None, "the fork of BackdoorBench, got .*/fst.py. Give its path: --fork PATH"),
        ("Fork", "import utils.no_such_part", "a whole checkout of the fork .* Check it out anew"),
    ],
)
def test_a_peer_that_cannot_be_imported_is_bad_input(
    peer: str,
    source: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("against_peers")
    if source is not None:
        (tmp_path / "defense").mkdir()
        for name in getattr(script, peer).MODULES:
            (tmp_path / "defense" / f"{name}.py").write_text(source)
    monkeypatch.setenv("MPLBACKEND", "Agg")  # what the script sets, so that it is taken back
    option = getattr(script, peer).OPTION
    monkeypatch.setattr("sys.argv", ["against_peers.py", option, str(tmp_path)])
    assert script.main() == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_two_peers_whose_packages_have_one_name_each_import_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("peers")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = list(sys.path), Path.cwd(), sys.modules.get("utils")
    found = []
    for kind in (script.Peer, script.Fork):
        root = tmp_path / kind.__name__
        # As the fork's, they change directory; as both's, they import inside functions, too.
        method = "import os, utils\nos.chdir(os.path.dirname(utils.__path__[0]))\n"
        method += "def late():\n    from utils.late import NAME\n    return NAME\n"
        files = {f"defense/{name}.py": method for name in kind.MODULES} | {
            "utils/late.py": f"NAME = {kind.__name__!r}", "utils/bd_dataset_v2.py": "",
            "utils/defense_utils/mbns.py": "",
            "utils/aggregate_block/dataset_and_transform_generate.py": "",
        }  # fmt: skip
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found.append(kind(root))
    for peer in (*found, *reversed(found)):
        with peer.here():
            assert peer.defense[peer.MODULES[0]].late() == type(peer).__name__
    assert (list(sys.path), Path.cwd(), sys.modules.get("utils")) == before


def test_the_calibration_is_that_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("scan_networks")
    shipped = json.loads(script.CALIBRATION.read_text(encoding="utf-8"))
    assert shipped == script.calibrated(script.records(10))


def test_what_is_said_of_suspicious_classes_of_clean_networks_is_what_the_scans_say() -> None:
    from excise.inversion import Combined

    usual, found = Combined(), []
    for path in sorted((ROOT / "benchmarks/records/scan/spc-10/small").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        most = max(record["per_class"])
        memory = record["numbers"]["memory"][record["per_class"].index(most)]
        found.append((most, memory))
    assert len(found) == 60
    suspicious = sorted(memory for most, memory in found if most >= usual.least)
    assert max(most for most, _ in found) < usual.sure
    # docs/methods/soft-prune.md, the head of excise.inversion.combined
    assert len(suspicious) == 36
    assert [round(share, 2) for share in suspicious[-2:]] == [0.19, 0.48]
    assert suspicious[-2] < usual.least_memory < suspicious[-1]
    # The page of a scan: "it exceeds 1 in one clean network in four".
    assert sum(most > 1 for most, _ in found) == 15


def test_a_table_of_defenses_names_presets_and_what_was_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from excise import registry

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("defense_table")

    def record(defense: str, preset: str, attack: str) -> dict[str, object]:
        row = registry.find("defense", defense)
        method = registry.build("defense", defense, row.presets()[preset])
        rates = {key: {"value": value} for key, value in (("acc", 0.8), ("asr", 0.1), ("ra", 0.7))}
        return {
            "status": "done", "peak_memory_mib": 900, "seconds": {"repair": 12.3},
            "run": {
                "spc": 10, "seed": 0, "attack": {"name": attack},
                "defense": registry.spec_of("defense", method),
            },
            "before": rates, "after": rates, "floor": None,
            "comparison": {"der": {"value": 0.9}},
        }  # fmt: skip

    found = [record("anp", "fast", attack) for attack in script.ATTACKS]
    found.append(record("clp", "published", "badnets"))
    made = script.tables(found).splitlines()
    cell = "80.0 / 10.0 / 70.0"
    assert f"| anp | fast | {cell} | {cell} | {cell} | {cell} | 0.900 | 0.900 | 12 | 900 |" in made
    assert f"| clp | published | {cell} | not run | not run | not run |  |  | 12 | 900 |" in made
    assert "| ims | | not run | not run | not run | not run | | | | |" in made
    assert f"| lf | {cell} | not run |" in script.before(found)
    old = record("clp", "published", "badnets")
    del old["run"]["defense"]["u"]  # type: ignore[index]
    assert f"| clp | an earlier form | {cell} |" in script.tables([old])


def test_every_command_of_the_readme_exists() -> None:
    from excise.cli import COMMANDS

    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^\| `excise ([\w-]+)", readme, flags=re.MULTILINE)) == set(COMMANDS)


def test_the_conventions_say_what_a_poison_ratio_is_a_fraction_of() -> None:
    page = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"^\* A poison ratio is .*?(?=^\* )", page, re.MULTILINE | re.DOTALL)
    of_the_target = [row.name for row in rows("attack") if issubclass(row.load(), CleanLabel)]
    assert of_the_target
    assert f"({', '.join(of_the_target)}) it is a fraction of the target class" in said.lower()


def test_every_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(("page", "table"), [("README.md", "summary"), ("docs/audit.md", "audits")])
def test_what_is_said_of_repairs_without_a_trigger_is_what_the_records_say(
    page: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("trigger_free")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == script.page_with(text, getattr(script, table)()), (
        "run: python benchmarks/trigger_free.py --write"
    )
