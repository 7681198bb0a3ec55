"""The page of a network's scan in a real browser: silent, offline, readable."""

import pytest
from tests.browser.conftest import open_page
from tests.browser.test_report import CONTRAST, network
from tests.reports import network_scans as scans

from excise.reports.network_scan import render_network_scan

NAMES = ("found", "nothing", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    home = tmp_path_factory.mktemp("network-scans")
    for name in NAMES:
        page = render_network_scan(getattr(scans, name)(), scans.pictures())
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
    assert window.title.endswith("Excise network scan")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_the_page_never_scrolls_sideways(visit, name, width):
    window = visit(name, width)
    needed, there = window.execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert there == width
    assert needed <= there


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["found", "nothing"])
def test_every_text_has_contrast(visit, name, scheme):
    assert visit(name, scheme=scheme).execute_script(CONTRAST) == []


def test_bars_are_as_long_as_suspicions_and_carry_the_alarm(visit):
    lengths = visit("found").execute_script("""
        return [...document.querySelectorAll('.track')].map(e => {
            const s = getComputedStyle(e);
            return [e.clientWidth, s.getPropertyValue('--share'), s.getPropertyValue('--mark')];
        })
    """)
    assert len(lengths) == 10
    assert all(width > 60 for width, _, _ in lengths)
    assert lengths[0][1] == "100.0%"
    assert {mark for _, _, mark in lengths} == {"39.9%"}
