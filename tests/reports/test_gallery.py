"""The gallery as text: contents, escaping, absent parts, determinism, nothing to load."""

import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tests.reports import galleries

from excise.errors import DataError
from excise.reports import render_gallery
from excise.reports.spectra import color_bar, spectrum_png

pytestmark = pytest.mark.fast

EVERY = ("gallery", "old", "unchanged", "many", "hostile")
VOID = {"meta", "link", "img", "br", "path", "use", "circle", "rect"}


class Reader(HTMLParser):
    """Collects tags, attributes and texts, and makes sure that what is opened is closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
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
        if "style" not in self.open:
            self.text.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture(scope="module")
def pages():
    return {
        name: render_gallery(getattr(galleries, name)(), galleries.pictures()) for name in EVERY
    }


@pytest.fixture(params=EVERY)
def page(request, pages):
    return pages[request.param]


def text(page):
    return " ".join("".join(Reader(page).text).split())


def test_the_page_loads_nothing_and_runs_nothing(page):
    tags = Reader(page)
    for _, attrs in tags.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert (attrs.get(key) or "#").startswith(("data:", "#"))
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    policy = next(m for m in tags.all("meta") if m.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    assert not tags.all("script")
    assert not [key for _, attrs in tags.tags for key in attrs if key.startswith("on")]


def test_every_victim_stands_with_its_figures(pages):
    said = text(pages["gallery"])
    for name in ("badnets-0", "blended-0", "blended-1"):
        assert said.count(name) >= 4, "in the links, the table, side by side, and its section"
    assert "a patch that replaces pixels" in said
    assert "IEEE Access 2019" in said
    for figure in ("80.2%", "97.0%", "2.6%", "1.19", "0.9%", "25.3", "0.966", "6%"):
        assert figure in said
    assert "95.7–97.9" in said, "the interval of 970 of 1000"
    assert "poison ratio 0.1 · size 3 · exclude target no · left open: row" in said
    assert "every class becomes 0" in said
    assert "×4, gray: unchanged" in said
    assert "2,500" in said


def test_what_was_not_run_and_what_was_left_out_is_said(pages):
    said = text(pages["gallery"])
    assert "Not run: lf" in said
    assert "lf: a smooth perturbation" in said
    assert "gtsrb-lf-0: images of 3×32×32 and not 1×8×8" in said


def test_every_picture_has_words(page):
    images = Reader(page).all("img")
    assert images
    assert all(image["alt"] for image in images)
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)


def test_pictures_of_one_victim(pages):
    images = Reader(pages["gallery"]).all("img")
    alts = [image["alt"] for image in images]
    assert alts.count("An image of 7, clean") == 3
    # Once in its own section, and the first image side by side as well.
    assert alts.count("The image of 7 with the trigger of badnets") == 1
    assert alts.count("The image of 0 with the trigger of badnets") == 2
    assert alts.count("What the trigger changed in the image of 7, ×4") == 3
    assert sum(alt.startswith("Mean DCT spectrum of clean images: magnitude") for alt in alts) == 3
    small = [image.get("class") for image in images if image["alt"].startswith("An image")]
    assert set(small) == {"small"}, "tiny images are scaled up in squares"


def test_answers_say_whose_will_they_do(pages):
    shown = re.findall(
        r'<figcaption class="(\w+) said">.*?<bdi>(.*?)</bdi>', pages["gallery"], re.S
    )
    # The class the attacker wants anyway is no success; then one success, one miss, one error.
    assert shown[:4] == [("good", "0"), ("bad", "0"), ("good", "7"), ("warning", "3")]
    assert "7</bdi>, called <bdi>1" in pages["gallery"], "a clean image that is misread"


def test_cards_that_say_little(pages):
    said = text(pages["old"])
    assert "not measured" in said
    assert "None" not in said
    assert "Not run" not in said
    assert "Left out" not in said
    assert "Make it again" not in said


def test_a_trigger_that_changes_nothing(pages):
    said = text(pages["unchanged"])
    assert said.count("nothing changed") >= 2, "PSNR and high frequencies have no value"
    assert "SSIMnot measured" in said


def test_pictures_that_are_missing_leave_a_gap():
    files = galleries.pictures()
    del files["clean/1.png"]
    files["0/2-residual.png"] = b"no picture"
    page = render_gallery(galleries.gallery(), files)
    assert page.count("no picture</div>") == 4, "the clean one of three victims, and one residual"


def test_hostile_names_stay_text(pages):
    tags = Reader(pages["hostile"])
    assert not [i for i in tags.all("img") if not i["src"].startswith("data:image/png")]
    assert "alert(1)" in text(pages["hostile"])
    for character in ("\x1b", "\u202e", "\x00"):
        assert character not in pages["hostile"]


def test_headings_are_in_order_and_links_lead_somewhere(page):
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
        assert anchor["href"][1:] in ids
    assert tags.all("html") == [{"lang": "en"}]


def test_the_same_record_gives_the_same_page(pages):
    assert render_gallery(galleries.gallery(), galleries.pictures()) == pages["gallery"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 1, got version 2"),
        ({"kind": "repair"}, "at kind"),
        ({"images": [{"label": "0"}]}, "at images.0.clean"),
        ({"images": [{"label": "0", "clean": "clean/0.png"}]}, "1 images, but not as many"),
        ({"images": []}, "at images"),
        ({"entries": []}, "at entries"),
        ({"spectrum": {"images": 1, "clean": []}}, "at spectrum.clean"),
    ],
)
def test_broken_records_are_refused(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        render_gallery(galleries.gallery() | change, {})


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("asr", {"value": 3}, "entries.1.asr.value"),
        ("visibility", {"mean_change": "<b>"}, "entries.1.visibility.mean_change"),
        ("arch", 5, "entries.1.arch"),
    ],
)
def test_a_broken_card_is_named(key, value, place):
    record = galleries.gallery()
    record["entries"][1][key] = value
    with pytest.raises(DataError, match=f"at {re.escape(place)}"):
        render_gallery(record, {})


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_spectra_share_one_scale_from_dark_to_bright():
    drawn = pixels(spectrum_png([[0, 1, 2], [4, 5, 2]], 4.0))
    assert drawn.shape == (2, 3, 3)
    light = drawn.sum(-1)
    assert light[0, 0] < light[0, 1] < light[0, 2] < light[1, 0]
    assert (drawn[1, 0] == drawn[1, 1]).all(), "what lies above the scale is its brightest"
    assert (drawn[0, 2] == drawn[1, 2]).all()
    assert (drawn[0, 2] == pixels(spectrum_png([[2]], 4.0))[0, 0]).all()
    assert (pixels(color_bar())[0, 0] == drawn[0, 0]).all()
    assert (pixels(spectrum_png([[0, 0]], 0.0)) == drawn[0, 0]).all()
