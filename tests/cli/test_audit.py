"""``excise repair --audit``: the findings stand in the record, on the page and in the status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from excise.attacks import Victim, save_victim
from excise.cli import main
from excise.testing import Planted


def test_an_undefended_network_does_not_withstand_it(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    made = {"seed": 0, "data": {"source": "digits", "victim_images": 0.5}, "attack": {"name": "x"}}
    save_victim(victim, Victim(planted.model, planted.backdoor, None), {"made": made})
    asked = ["repair", str(victim), "--images", "digits", "--method", "none", "--spc", "20"]
    assert main([*asked, "--out", str(tmp_path / "quiet")]) == 0
    assert "audit" not in json.loads((tmp_path / "quiet" / "record.json").read_text())
    assert main([*asked, "--audit", "--out", str(out)]) == 1
    record = json.loads((out / "record.json").read_text())
    found = {one["name"]: one for one in record["audit"]["findings"]}
    assert list(found) == ["invert-again", "reactivation", "relearning"]
    assert found["invert-again"]["passed"] is False
    assert not record["audit"]["told"]
    assert record["verdict"]["status"] == "incomplete"
    assert "does not withstand the audit (invert-again" in record["verdict"]["sentence"]
    assert record["seconds"]["audit"] > 0
    assert "audit, invert-again: not withstood." in capsys.readouterr().out
    assert '<section id="audit"' in (out / "report.html").read_text()


def test_what_was_recovered_untold_is_shown_and_searched_for_again(
    planted: Planted, tmp_path: Path
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    made = {"seed": 0, "data": {"source": "digits", "victim_images": 0.5}, "attack": {"name": "x"}}
    save_victim(victim, Victim(planted.model, planted.backdoor, None), {"made": made})
    quick = ["--inverter", "combined,least=0,effort=0.1", "--steps", "4", "--audit"]
    main(["repair", str(victim), "--images", "digits", "--spc", "10", "--out", str(out), *quick])
    record = json.loads((out / "record.json").read_text())
    searched = record["audit"]["settings"]["invert-again"]["inverter"]
    assert searched["name"] == "Combined"
    assert searched["effort"] == 0.1
    assert record["assumed"] == []
    assert record["tried_on"] == {"images": 535, "unseen": True}
    first = record["triggers"][0]
    assert first["class"] == "3"
    assert first["rate"]["n"] == first["repaired"]["n"] > 400
    assert first["rate"]["value"] > first["without"]["value"]
    assert {"before", "after", "repaired"} <= first["shown"][0].keys()
    names = [row[part] for row in first["shown"] for part in ("clean", "triggered", "residual")]
    assert all((out / name).is_file() for name in names)
    page = (out / "report.html").read_text()
    assert '<section id="triggers"' in page
    assert page.count("no picture") == 0
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page, "the record and its pictures hold it all"
