"""The page of an image scan: what it says, and that nothing in it acts."""

import re

import pytest
from tests.reports import scans

from excise.errors import DataError
from excise.reports.scan import render_scan


def page(record):
    return render_scan(record, scans.pictures())


def test_it_says_what_was_flagged_and_how_often_clean_pictures_are():
    text = page(scans.scan())
    assert "9 of 120 pictures are flagged." in text
    assert "2 of 100 clean pictures it did not learn from, interval 0.0–4.0" in text
    assert "0 to 5" in text, "false alarms to expect among 120"
    assert "suspicion 0.990" in text
    assert "more high-frequency energy than 100% of clean pictures" in text
    assert "more high-frequency energy than 85% of clean pictures" in text
    assert "1 file that cannot be read" in text
    assert "misses most of them: that nothing is flagged does not mean" in text
    assert text.count("<li>\n    <h3>") == 15
    assert '<div class="gap">no picture</div>' in text, "a missing picture leaves a gap"


def test_more_flagged_than_shown_is_said():
    record = scans.scan(20, 60)
    record["shown"] = record["shown"][:5] + record["shown"][-6:]
    assert "15 more are in the table below" in page(record)


def test_nothing_found_still_says_what_it_cannot_see():
    text = page(scans.nothing())
    assert "Nothing flagged" in text
    assert "What it cannot see" in text
    assert 'id="flagged"' not in text


@pytest.mark.parametrize(
    ("status", "word"),
    [("as-clean", "perhaps by chance"), ("unreliable", "not reliable"), ("new", "No verdict")],
)
def test_every_verdict_has_its_word(status, word):
    assert word in page(scans.scan(status=status))


def test_fine_tuning_on_smooth_patterns_is_said():
    record = scans.scan()
    record["spec"]["detector"]["smooth_epochs"] = 5
    text = page(record)
    assert "fine-tuned on random smooth patterns" in text
    assert "misses most of them" not in text


def test_no_string_of_the_record_acts():
    text = page(scans.hostile())
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)


def test_a_page_is_a_pure_function_and_offline():
    assert page(scans.scan()) == page(scans.scan())
    assert "default-src 'none'" in page(scans.scan())
    assert "http" not in re.sub(r'http-equiv|"data:[^"]*"', "", page(scans.scan()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 1, got version 2. Update Excise"),
        ({"kind": "repair"}, "at kind"),
        ({"images": [{"name": "x", "suspicion": 2.0, "flagged": True}]}, "at images.0.suspicion"),
        ({"shape": [3, 32]}, "at shape"),
        ({"shown": None}, "at shown"),
    ],
)
def test_a_record_that_is_none(change, message):
    with pytest.raises(DataError, match=message):
        page(scans.scan() | change)
