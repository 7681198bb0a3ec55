"""The gallery in a real browser: silent, offline, readable on a phone, light and dark."""

import pytest
from tests.browser.conftest import open_page
from tests.browser.test_report import CONTRAST, network
from tests.reports import galleries

from excise.reports import render_gallery

NAMES = ("gallery", "old", "many", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The file of each page by name; written once."""
    home = tmp_path_factory.mktemp("galleries")
    for name in NAMES:
        page = render_gallery(getattr(galleries, name)(), galleries.pictures())
        (home / f"{name}.html").write_text(page, encoding="utf-8")
    return home


@pytest.fixture
def visit(chromium, pages):
    """Open a page at a width, light or dark, with everything unfolded, and return the window."""

    def opened(name, width=1280, scheme="light"):
        return open_page(chromium, pages / f"{name}.html", width, scheme)

    return opened


@pytest.mark.parametrize("name", NAMES)
def test_the_console_is_silent_and_nothing_is_requested(visit, name):
    window = visit(name)
    assert window.get_log("browser") == []
    asked = [sent["request"]["url"] for sent in network(window, "requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [window.current_url]
    assert window.title.endswith("Excise gallery of attacks")


@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_never_scrolls_sideways(visit, name, width):
    needed, there = visit(name, width).execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert there == width
    assert needed <= there


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["gallery", "old"])
def test_every_text_has_contrast(visit, name, scheme):
    assert visit(name, scheme=scheme).execute_script(CONTRAST) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_pictures_are_large_enough_and_not_blurred(visit, width):
    shown = visit("gallery", width).execute_script("""
        return [...document.querySelectorAll('.wall img, .trio img')].map(i =>
            [i.complete && i.naturalWidth > 0, i.clientWidth, getComputedStyle(i).imageRendering])
    """)
    assert len(shown) == 3 * (15 + 3)
    assert all(there and wide > 60 and look == "pixelated" for there, wide, look in shown)


def test_clean_and_triggered_stand_above_one_another(visit):
    lefts = visit("gallery").execute_script("""
        const images = [...document.querySelectorAll('#victim-0 .wall img')];
        return images.map(i => Math.round(i.getBoundingClientRect().left));
    """)
    assert lefts[:5] == lefts[5:10] == lefts[10:15]


def test_tab_reaches_every_attack(visit):
    from selenium.webdriver.common.keys import Keys

    window = visit("gallery")
    window.switch_to.active_element.send_keys(Keys.TAB)
    link = window.switch_to.active_element
    assert link.rect["x"] >= 0, "the skip link shows itself"
    link.send_keys(Keys.ENTER)
    assert window.execute_script("return document.activeElement.id") == "victim-0"
