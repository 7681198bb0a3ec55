"""The small grid runs here, and what the repository holds of it is what comes out."""

import base64
import re
from pathlib import Path

from excise.cli import main
from excise.experiments.store import Store

ROOT = Path(__file__).parents[2]
GRID = ROOT / "benchmarks" / "grids" / "small.toml"
RECORDS = ROOT / "benchmarks" / "records" / "small" / "records"


def test_the_small_grid_gives_the_runs_that_are_recorded(tmp_path, capsys):
    store = tmp_path / "small"
    assert main(["sweep", str(GRID), "--store", str(store), "--workers", "2"]) == 0
    assert "16 of 16 runs are done, 0 failed" in capsys.readouterr().out
    made = {record["key"]: record for record in Store(store).records()}
    # A key holds spec, versions of methods and data: if these differ, the records are stale. Run
    # the grid again (its head says how) and make docs/leaderboard-small.html anew.
    assert set(made) == {path.stem for path in RECORDS.glob("??/*.json")}
    for record in made.values():
        # The attack took, on this machine too.
        assert record["before"]["acc"]["value"] > 0.9
        assert record["before"]["asr"]["value"] > 0.8
    assert main(["leaderboard", str(store), "--page", str(tmp_path / "page.html")]) == 0


def test_the_page_of_the_small_grid_is_in_the_docs():
    page = (ROOT / "docs" / "leaderboard-small.html").read_text(encoding="utf-8")
    packed = re.search(r'"keys":"([^"]*)"', page)
    assert packed is not None
    keys = base64.b64decode(packed[1]).hex()
    shown = {keys[start : start + 24] for start in range(0, len(keys), 24)}
    assert shown == {path.stem for path in RECORDS.glob("??/*.json")}
