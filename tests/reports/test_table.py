"""The before-and-after table: plain, in a terminal, in Markdown."""

import io

import pytest
from rich.console import Console
from tests.reports import records

from excise.reports import markdown_table, repair_table, terminal_table

pytestmark = pytest.mark.fast


def shown(record, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(terminal_table(record))
    return console.file.getvalue()


def test_a_full_table():
    table = repair_table(records.repair())
    assert table.header() == ["", "before", "pruned", "after", "change", "clean twin"]
    acc, asr, ra, recall, der = table.cells()
    assert acc[0] == "ACC ↑"
    assert asr[:2] == ["ASR ↓", "99.8 (99.2–99.9)"]
    assert ra[3] == "92.0 (90.0–93.6)"
    assert recall[0] == "Recall ↑"
    assert der == ["DER ↑", "—", "—", "99.0 (98.3–99.7)", "—", "—"]
    assert all(len(line) == len(table.header()) for line in table.cells())


def test_what_was_recovered_has_a_row():
    last = repair_table(records.untold()).cells()[-1]
    assert last == ["Found ↓", "97.2 (95.2–99.2)", "3.1 (2.2–4.4)", "−94.1"]
    untried = records.untold()
    for trigger in untried["triggers"]:
        trigger["rate"] = trigger["without"] = trigger["repaired"] = {"value": None, "n": 0}
    assert repair_table(untried).cells()[-1][0] == "Recall ↑"


def test_a_bare_table_has_no_empty_columns():
    table = repair_table(records.bare())
    assert table.header() == ["", "before", "after", "change"]
    assert [line[0] for line in table.cells()] == ["ACC ↑", "ASR ↓", "RA ↑", "Recall ↑"]
    assert table.cells()[1][1:] == ["—", "—", "—"]
    assert table.der is None


@pytest.mark.parametrize(
    ("key", "delta", "half", "meaning"),
    [
        ("acc", 0.05, 0.01, "better"),
        ("acc", -0.05, 0.01, "worse"),
        ("asr", -0.05, 0.01, "better"),
        ("asr", 0.05, 0.01, "worse"),
        ("ra", 0.05, 0.05, "unclear"),
    ],
)
def test_what_a_change_means(key, delta, half, meaning):
    record = records.repair()
    record["before"][key] = records.rate(500, 1000)
    record["after"][key] = records.rate(500 + round(1000 * delta), 1000)
    record["comparison"][f"delta_{key}"] = records.interval(delta, half)
    change = next(row for row in repair_table(record).rows if row.key == key).change
    assert change.meaning == meaning


def test_a_change_of_the_wrong_sign_loses_its_interval():
    record = records.repair()
    record["comparison"]["delta_asr"]["value"] *= -1
    change = repair_table(record).rows[1].change
    assert (change.low, change.high, change.meaning) == (None, None, "")
    assert change.value < 0
    assert "problem: comparison.delta_asr" in " ".join(shown(record).split())


def test_the_terminal_table_fits_80_columns():
    text = shown(records.repair())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "−98.9 to −97.7" in text


def test_a_hostile_record_cannot_speak_to_the_terminal():
    text = shown(records.hostile())
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


def test_markdown():
    text = markdown_table([records.repair(), records.bare()])
    lines = text.splitlines()
    assert len(lines) == 4
    assert {line.count(" | ") for line in lines} == {14}
    assert "| grad\\-prune | oracle | badnets | digits |" in lines[2]
    assert "93.6 (91.9–95.0)" in lines[2]
    assert "38 of 600 | 9.2 s" in lines[2]
    assert lines[3].startswith("| — | — |")


def test_markdown_of_hostile_names_stays_one_row_without_markup():
    record = records.hostile()
    record["spec"]["model"]["arch"] = "a|b\n# c <img> [x](y) `z`"
    line = markdown_table([record]).splitlines()[2]
    assert "a\\|b \\# c \\<img\\> \\[x\\]\\(y\\) \\`z\\`" in line
    assert "\x1b" not in line


def test_tables_are_the_same_every_time():
    assert markdown_table([records.repair()]) == markdown_table([records.repair()])
    assert repair_table(records.repair()) == repair_table(records.repair())
