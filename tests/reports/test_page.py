"""The page as text: escaping, absent parts, determinism, nothing to load."""

import base64
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from tests.reports import records

from excise.reports import render_repair

pytestmark = pytest.mark.fast

EVERY = ("repair", "untold", "brief", "signs", "very_deep", "bare", "hostile")
VOID = {"meta", "link", "img", "br", "input", "rect", "path", "use", "circle"}


class Reader(HTMLParser):
    """Collects tags, attributes and texts, and makes sure that what is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.scripts, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        (self.scripts if "script" in self.open else self.text).append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def pages():
    return {name: render_repair(getattr(records, name)(), records.pictures()) for name in EVERY}


@pytest.fixture(params=EVERY)
def page(request, pages):
    return pages[request.param]


def text(page):
    return " ".join("".join(Reader(page).text).split())


def test_the_page_loads_nothing(page):
    tags = Reader(page)
    for _, attrs in tags.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert (attrs.get(key) or "#").startswith(("data:", "#"))
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\((?!#)|@import", page)
    policy = next(m for m in tags.all("meta") if m.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_the_page_runs_nothing(page):
    tags = Reader(page)
    assert [s["type"] for s in tags.all("script")] == ["application/json"]
    assert not [key for _, attrs in tags.tags for key in attrs if key.startswith("on")]
    assert not {t for t, _ in tags.tags} & {"iframe", "object", "embed", "form", "base"}


def test_hostile_names_stay_text(pages):
    tags = Reader(pages["hostile"])
    assert not [i for i in tags.all("img") if not i["src"].startswith("data:image/png")]
    assert "alert(1)" in text(pages["hostile"])
    for character in ("\x1b", "\u202e", "\x00"):
        assert character not in pages["hostile"]


def test_unprintable_names_do_not_break_the_page():
    record = records.repair(["\ud800", *"123456789"])
    record["notes"] = ["{{ 7 * 7 }} {% raw %} \ud83d"]
    page = render_repair(record, {})
    page.encode()
    assert "{{ 7 * 7 }}" in page


def test_the_record_inside_is_the_record(page, request):
    record = getattr(records, request.node.callspec.params["page"])()
    tags = Reader(page)
    assert json.loads("".join(tags.scripts)) == record
    link = next(a for a in tags.all("a") if "download" in a)
    head, content = link["href"].split(",", 1)
    assert head == "data:application/json;base64"
    assert json.loads(base64.b64decode(content)) == record


def test_the_record_for_reading_is_json_too(pages):
    shown = re.search(
        r"aria-label=\"The record as JSON\">\s*<pre><code>(.*?)</code>", pages["bare"], re.S
    )
    assert json.loads(shown.group(1).replace("&#34;", '"').replace("&#39;", "'")) == records.bare()


def test_headings_are_in_order_and_every_section_has_one(page):
    tags = Reader(page)
    levels = [int(t[1]) for t, _ in tags.tags if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [attrs["id"] for _, attrs in tags.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for section in tags.all("section"):
        assert section["aria-labelledby"] in ids
    for anchor in tags.all("a"):
        if anchor["href"].startswith("#"):
            assert anchor["href"][1:] in ids
    assert tags.all("html") == [{"lang": "en"}]


def test_what_scrolls_can_be_reached_by_keyboard(page):
    regions = [a for _, a in Reader(page).tags if "scroll" in (a.get("class") or "").split()]
    assert regions
    assert all(r["tabindex"] == "0" and r["role"] == "region" and r["aria-label"] for r in regions)


def test_every_drawing_has_words_or_is_decoration(page):
    for svg in Reader(page).all("svg"):
        assert svg.get("aria-hidden") == "true" or (
            svg.get("role") == "img" and svg.get("aria-labelledby")
        )


def test_sections_stand_in_order(pages):
    sections = [s["id"] for s in Reader(pages["repair"]).all("section")]
    assert sections == [
        *("verdict", "numbers", "pictures", "curve", "filters"),
        *("confusion", "checks", "run", "raw"),
    ]


def test_what_was_recovered_is_shown_where_no_trigger_was_told(pages):
    sections = [s["id"] for s in Reader(pages["untold"]).all("section")]
    assert sections[:3] == ["verdict", "numbers", "triggers"]
    words = text(pages["untold"])
    assert "Recovered trigger works from 97.2% → to 3.1% lower is better" in words
    assert "A patch toward 3 It sends 97.2% (interval 95.2–99.2) of 1,000 unseen images" in words
    assert "In the repaired network it is 3.1% (interval 2.2–4.4)." in words
    assert "with the trigger horse; repaired it says airplane, trigger and all." in words
    aimless = records.untold()
    aimless["triggers"][1]["class"] = None
    words = text(render_repair(aimless, records.pictures()))
    assert "A warp toward no class of its own It changes the answer for 64.0% (interval" in words
    told = records.untold() | {part: records.repair()[part] for part in ("before", "after")}
    words = text(render_repair(told, records.pictures()))
    assert "What was recovered" in words
    assert "Recovered trigger works" not in words, "the true one says more"


def test_a_bare_record_says_what_is_missing(pages):
    sections = [s["id"] for s in Reader(pages["bare"]).all("section")]
    assert sections == ["verdict", "numbers", "checks", "run", "raw"]
    words = text(pages["bare"])
    assert "No clean twin" in words
    assert "Without a known trigger" in words
    assert "The record holds no checks." in words
    assert "The record holds no command" in words
    assert "Told to the defense not recorded" in words
    assert "not known to Excise" in words


OPTIONAL = (
    *("pruned", "floor", "comparison", "spec", "curve", "filters", "history", "assumed", "notes"),
    *("checks", "seconds", "peak_memory_mib", "environment", "command", "created", "pictures"),
    *("residual_scale", "triggers", "tried_on"),
)


@pytest.mark.parametrize("part", OPTIONAL)
def test_each_optional_part_may_be_absent(part):
    record = records.untold() | records.plain()
    del record[part]
    Reader(render_repair(record, {}))


def test_all_optional_parts_may_be_null_or_empty():
    record = records.untold() | records.repair()
    Reader(render_repair(record | dict.fromkeys(OPTIONAL), {}))
    empty = {k: type(record[k])() for k in OPTIONAL if isinstance(record[k], list | dict | str)}
    empty |= {"pruned": None, "floor": None, "tried_on": None}
    Reader(render_repair(record | empty, {}))


@pytest.mark.parametrize("part", ["asr", "ra", "target_recall", "confusion", "triggered_confusion"])
def test_each_part_of_an_evaluation_may_be_missing(part):
    record = records.plain()
    for name in ("before", "pruned", "after", "floor"):
        record[name][part] = None
    Reader(render_repair(record, {}))


def test_the_verdict_is_a_word_and_an_icon():
    for status, word, icon in (
        ("repaired", "Repaired", "good"),
        ("incomplete", "Incomplete", "warning"),
        ("harmed", "Harmed", "bad"),
        ("unchanged", "Unchanged", "same"),
        ("clean-only", "Clean images only", "unknown"),
        ("void", "Void", "bad"),
        ("mended", "Mended", "unknown"),
    ):
        verdict = {"status": status, "sentence": f"{word}: so it is."}
        page = render_repair({**records.bare(), "verdict": verdict}, {})
        assert f"<span>{word}</span></h2>" in page
        assert '<p class="sentence">So it is.</p>' in page
        assert f'class="verdict {icon}"' in page
        assert f'href="#icon-{icon}"' in page
    verdict = {"status": "unchanged", "sentence": "", "ok": False}
    page = render_repair({**records.bare(), "verdict": verdict}, {})
    assert 'class="verdict warning"' in page


def test_numbers_have_thousands_separators_and_intervals(pages):
    words = text(pages["repair"])
    assert "940 of 1,000" in words
    assert "92.4–95.3" in words
    assert "63,728" in text(pages["very_deep"])


def test_a_missing_or_false_picture_leaves_a_gap_that_says_so():
    files = records.pictures()
    del files["pictures/0-clean.png"]
    files["pictures/1-clean.png"] = b"<svg onload=alert(1)>"
    page = render_repair(records.plain(), files)
    assert page.count('<div class="gap">no picture</div>') == 2
    assert "<svg onload" not in page


def test_small_pictures_are_scaled_up_in_squares():
    page = render_repair(records.plain(), records.pictures())
    images = Reader(page).all("img")
    assert {(i["width"], i["height"], i["class"]) for i in images} == {("8", "8", "small")}
    assert images[0]["alt"] == "An image of 7, clean"


def test_ten_classes_show_numbers_many_a_map_and_very_many_a_list(pages):
    assert '<table class="matrix">' in pages["repair"]
    assert 'class="heat"' not in pages["repair"]
    assert '<table class="matrix' not in pages["signs"]
    assert pages["signs"].count('class="heat"') == 4
    crowd = records.repair([f"class {i}" for i in range(200)], per=2, rounds=0, kept=0)
    page = render_repair(crowd, {})
    assert 'class="heat"' not in page
    assert '<table class="matrix' not in page
    assert "Most frequent mistakes" in page


def test_untouched_layers_of_a_deep_network_are_folded(pages):
    assert "65 layers untouched" in pages["very_deep"]
    assert "layers untouched" not in pages["signs"]


def test_a_long_history_is_thinned_and_says_so(pages):
    assert "rows in between are left out here" in pages["very_deep"]
    assert "<td>900</td>" in pages["very_deep"]


def test_pages_stay_small(pages):
    sizes = {name: len(page.encode()) for name, page in pages.items()}
    assert sizes["bare"] < 40_000
    assert sizes["repair"] < 300_000
    assert sizes["signs"] < 900_000
    assert sizes["very_deep"] < 1_500_000


def test_the_same_record_gives_the_same_page(pages):
    assert render_repair(records.repair(), records.pictures()) == pages["repair"]


def test_neither_record_nor_pictures_are_changed():
    record, files = records.repair(), records.pictures()
    render_repair(record, files)
    assert (record, files) == (records.repair(), records.pictures())
