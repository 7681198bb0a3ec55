"""The page of an image scan in a real browser: silent, offline, readable."""

import pytest
from tests.browser.conftest import open_page
from tests.browser.test_report import CONTRAST, network
from tests.reports import scans

from excise.reports.scan import render_scan

NAMES = ("scan", "nothing", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    home = tmp_path_factory.mktemp("scans")
    for name in NAMES:
        page = render_scan(getattr(scans, name)(), scans.pictures())
        (home / f"{name}.html").write_text(page, encoding="utf-8")
    return home


@pytest.fixture
def visit(chromium, pages):
    """Open a page at a width, light or dark, everything unfolded, and return the window."""

    def opened(name, width=1280, scheme="light"):
        return open_page(chromium, pages / f"{name}.html", width, scheme)

    return opened


@pytest.mark.parametrize("name", NAMES)
def test_the_console_is_silent_and_nothing_is_requested(visit, name):
    window = visit(name)
    assert window.get_log("browser") == []
    asked = [sent["request"]["url"] for sent in network(window, "requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [window.current_url]
    assert window.title.endswith("Excise image scan")


@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_never_scrolls_sideways(visit, name, width):
    window = visit(name, width)
    needed, there = window.execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert there == width
    assert needed <= there


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["scan", "nothing"])
def test_every_text_has_contrast(visit, name, scheme):
    assert visit(name, scheme=scheme).execute_script(CONTRAST) == []


def test_every_picture_is_drawn_with_a_text_for_those_who_do_not_see_it(visit):
    window = visit("scan")
    drawn = window.execute_script("""
        return [...document.images].map(i => [i.naturalWidth, i.clientWidth, i.alt.length])
    """)
    assert len(drawn) == 14 * 3 + 2
    assert all(natural and client > 40 and alt > 5 for natural, client, alt in drawn)
    assert window.execute_script("return document.querySelectorAll('.gap').length") == 3


def test_tab_reaches_every_link_fold_and_table_in_order(visit):
    from selenium.webdriver.common.keys import Keys

    window = visit("scan")
    count = window.execute_script("""
        return [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
            .filter(e => e.checkVisibility()).map((e, i) => e.dataset.order = i).length
    """)
    reached = []
    for _ in range(count):
        window.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(window.execute_script("return Number(document.activeElement.dataset.order)"))
    assert reached == list(range(count))
