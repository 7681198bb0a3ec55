"""What a person is told of how far it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from excise import console as module
from excise.console import Story

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"stage": "search", "round": 3, "rounds": 35}, "search, round 3 of 35"),
        ({"stage": "climb", "step": 2, "steps": 300}, "climb, step 2 of 300"),
        ({"stage": "gates", "epoch": 1, "epochs": 50, "loss": 0.25}, "epoch 1 of 50 · loss 0.250"),
        ({"stage": "prune", "round": 7, "layer": "conv1", "index": 4}, "round 7, conv1 filter 4"),
    ],
)
def test_a_round_is_told_with_how_many_there_are(monkeypatch, row, said) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    out = io.StringIO()
    with Story(Console(file=out, width=200)) as story:
        story.stage("repairing")
        story.round(row)
    assert f"repairing: {row['stage']}, " in out.getvalue()
    assert said in out.getvalue()
