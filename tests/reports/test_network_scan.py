"""The page of a network's scan: what it says, and that nothing in it acts."""

import re

import pytest
from tests.reports import network_scans as scans

from excise.errors import DataError
from excise.reports.network_scan import render_network_scan


def page(record):
    return render_network_scan(record, scans.pictures())


def test_it_says_which_class_how_sure_and_shows_the_triggers():
    text = page(scans.found())
    words = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    assert "Backdoor likely" in words
    assert "alarm from 1.45 on" in words
    assert "A patch toward horse" in words
    assert "A pattern of few waves toward horse" in words
    assert (
        "It sends 88.0% (interval 86.0–90.0) of 1,000 unseen images of other classes there; "
        "without it 2.3% go there. It explains 31.0% of what batch norms remember "
        "beyond clean images. Mean change of an image: 8.6 pixels." in words
    )
    assert "horse suspected 3.63" in words
    assert text.count('class="suspect"') == 1
    assert text.count('<div class="gap">no picture</div>') == 1, "a missing picture leaves a gap"
    assert text.count("<img ") == 17


def test_nothing_found_still_says_what_it_cannot_see():
    text = page(scans.nothing())
    assert "No class stands out" in text
    assert "That no class stands out is no proof" in text
    assert 'id="triggers"' not in text
    assert "50 less suspicious classes are left out" in text


def test_a_void_verdict_is_no_clean_bill():
    record = scans.nothing()
    record["verdict"]["status"] = "void"
    text = page(record)
    assert "<span>Cannot be told</span></h2>" in text
    assert 'class="verdict unknown"' in text


def test_images_the_search_had_are_called_so():
    record = scans.found() | {"tried_on": {"images": 90, "unseen": False}}
    assert "of 1,000 images of other classes there, which it was found with" in page(record)


def test_a_verdict_of_a_newer_time_has_a_word():
    record = scans.found()
    record["verdict"]["status"] = "new"
    assert "No verdict" in page(record)


def test_no_string_of_the_record_acts():
    text = page(scans.hostile())
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)


def test_a_page_is_a_pure_function_and_offline():
    assert page(scans.found()) == page(scans.found())
    assert "default-src 'none'" in page(scans.found())
    assert "http" not in re.sub(r'http-equiv|"data:[^"]*"', "", page(scans.found()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 1, got version 2. Update Excise"),
        ({"kind": "image-scan"}, "at kind"),
        ({"statistic": float("nan")}, "at statistic"),
        ({"classes": []}, "at classes"),
        ({"triggers": [{}]}, "at triggers.0"),
    ],
)
def test_a_record_that_is_none(change, message):
    with pytest.raises(DataError, match=message):
        page(scans.found() | change)
