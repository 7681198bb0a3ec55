"""The report of a repair in a real browser: silent, offline, readable, reachable by keyboard."""

import json

import pytest
from tests.reports import records

from excise.reports import render_repair

WIDTHS = (360, 800, 1280)
NAMES = ("repair", "untold", "brief", "signs", "very_deep", "bare", "hostile")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The file of each page by name; written once."""
    home = tmp_path_factory.mktemp("pages")
    for name in NAMES:
        page = render_repair(getattr(records, name)(), records.pictures())
        (home / f"{name}.html").write_text(page, encoding="utf-8")
    return home


@pytest.fixture
def visit(chromium, pages):
    """Open a page at a width, light or dark, and return the window."""

    def opened(name, width=1280, scheme="light", media=""):
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": key, "value": value} for key, value in wishes.items()]
        emulated = {"media": media, "features": features}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for log in ("browser", "performance"):
            chromium.get_log(log)
        chromium.get((pages / f"{name}.html").as_uri())
        return chromium

    return opened


def network(window, event):
    """What the browser's network log holds of one kind of event."""
    messages = (json.loads(entry["message"])["message"] for entry in window.get_log("performance"))
    return [m["params"] for m in messages if m["method"] == f"Network.{event}"]


@pytest.mark.parametrize("name", NAMES)
def test_the_console_is_silent_and_nothing_is_requested(visit, name):
    window = visit(name)
    window.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert window.get_log("browser") == []
    asked = [sent["request"]["url"] for sent in network(window, "requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [window.current_url]
    assert window.title.endswith("Excise repair report")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_the_page_never_scrolls_sideways(visit, name, width):
    window = visit(name, width)
    fits = "return [document.scrollingElement.scrollWidth, innerWidth]"
    for opened in ("false", "true"):
        window.execute_script(
            f"for (const d of document.querySelectorAll('details')) d.open = {opened}"
        )
        needed, there = window.execute_script(fits)
        assert there == width
        assert needed <= there


@pytest.mark.parametrize("name", NAMES)
def test_tab_reaches_everything_in_reading_order(visit, name):
    from selenium.webdriver.common.keys import Keys

    window = visit(name)
    expected = window.execute_script("""
        return [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
            .filter(e => e.checkVisibility())
            .map((e, i) => { e.dataset.order = i; return e.className || e.tagName; })
    """)
    assert expected[0] == "skip"
    assert any("scroll" in css for css in expected)
    reached = []
    for _ in expected:
        window.switch_to.active_element.send_keys(Keys.TAB)
        order, outline = window.execute_script("""
            const e = document.activeElement, style = getComputedStyle(e);
            return [Number(e.dataset.order), style.outlineStyle + ' ' + style.outlineWidth];
        """)
        reached.append(order)
        assert outline == "solid 3px"
    assert reached == list(range(len(expected)))


def test_the_skip_link_leads_to_the_verdict(visit):
    from selenium.webdriver.common.keys import Keys

    window = visit("repair")
    window.switch_to.active_element.send_keys(Keys.TAB)
    link = window.switch_to.active_element
    assert link.rect["x"] >= 0
    link.send_keys(Keys.ENTER)
    assert window.execute_script("return document.activeElement.id") == "verdict"


CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = color => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
const behind = e => {
  const layers = [];
  for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const light = rgb => {
  const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; node = walker.nextNode();) {
  const e = node.parentElement;
  if (!node.data.trim() || e.closest('script, title, desc, .unseen')) continue;
  if (!e.checkVisibility()) continue;
  const style = getComputedStyle(e), below = behind(e);
  const ink = over(rgba(e.closest('svg') ? style.fill : style.color), below);
  const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) poor.add(`${ratio.toFixed(2)} ${e.className} ${node.data.trim()}`);
}
return [...poor].slice(0, 10);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["repair", "untold", "signs", "very_deep", "bare"])
def test_every_text_has_contrast(visit, name, scheme):
    window = visit(name, scheme=scheme)
    window.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert window.execute_script(CONTRAST) == []


@pytest.mark.parametrize("status", ["incomplete", "harmed", "unchanged"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_verdict_has_contrast(visit, pages, status, scheme):
    record = records.plain() | {"verdict": {"status": status, "sentence": "So it is."}}
    (pages / "other.html").write_text(render_repair(record, {}), encoding="utf-8")
    assert visit("other", scheme=scheme).execute_script(CONTRAST) == []


def test_poor_contrast_would_be_found(visit):
    window = visit("bare")
    window.execute_script("document.querySelector('#numbers .lead').style.color = '#999'")
    [found] = window.execute_script(CONTRAST)
    assert "lead" in found


def test_dark_mode_is_dark(visit):
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert visit("repair", scheme="dark").execute_script(ground) == "rgb(21, 23, 26)"
    assert visit("repair", scheme="light").execute_script(ground) == "rgb(250, 249, 247)"
    # Paper is white, whatever the screen is.
    assert visit("repair", scheme="dark", media="print").execute_script(ground) == (
        "rgb(255, 255, 255)"
    )


@pytest.mark.parametrize("name", ["repair", "signs"])
def test_pictures_and_drawings_are_there(visit, name):
    window = visit(name)
    assert window.execute_script("""
        return [...document.images].every(i => i.complete && i.naturalWidth && i.clientWidth > 40)
    """)
    drawn = window.execute_script("""
        return [...document.querySelectorAll('svg[role=img], svg.strip')]
            .filter(s => s.checkVisibility()).map(s => s.getBoundingClientRect().height)
    """)
    assert len(drawn) >= 21
    assert min(drawn) > 3
    # The pattern that draws the kept filters lies in another drawing of the page.
    assert window.execute_script("return document.getElementById('filter-cell') !== null")


def test_the_curve_has_a_form_for_phones(visit):
    shown = """
        return [...document.querySelectorAll('svg.chart')].filter(s => s.checkVisibility())
            .map(s => [s.parentElement.className, s.getBoundingClientRect().width,
                parseFloat(getComputedStyle(s.querySelector('text')).fontSize)
                * s.getBoundingClientRect().width / s.viewBox.baseVal.width])
    """
    [(css, width, letters)] = visit("repair", 360).execute_script(shown)
    assert css == "narrow"
    assert width <= 328
    assert letters >= 9
    [(css, width, letters)] = visit("repair", 1280).execute_script(shown)
    assert css == "wide"
    assert letters >= 12


@pytest.mark.parametrize("name", ["repair", "brief", "signs", "very_deep"])
def test_no_label_of_the_curve_lies_on_another(visit, name):
    for width in (360, 1280):
        clash = visit(name, width).execute_script("""
            const texts = [...document.querySelectorAll('svg.chart text')]
                .filter(t => t.checkVisibility())
                .map(t => [t.textContent, t.getBoundingClientRect()]);
            const found = [];
            texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
                if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3
                    && q.top < p.bottom - 3) found.push(a + ' / ' + b);
            }));
            return found;
        """)
        assert clash == []


def test_the_record_can_be_downloaded(visit, tmp_path):
    from selenium.webdriver.support.wait import WebDriverWait

    window = visit("hostile")
    allow = {"behavior": "allow", "downloadPath": str(tmp_path)}
    window.execute_cdp_cmd("Browser.setDownloadBehavior", allow)
    window.find_element("css selector", "a.download").click()
    path = tmp_path / "record.json"
    WebDriverWait(window, 10).until(lambda _: path.exists() and path.stat().st_size)
    assert json.loads(path.read_text(encoding="utf-8")) == records.hostile()


def test_the_policy_stops_what_gets_in_all_the_same(visit):
    window = visit("bare")
    window.execute_script("""
        const image = document.createElement('img');
        image.src = 'https://example.invalid/leak.png';
        document.body.append(image);
    """)
    [entry] = window.get_log("browser")
    assert "Content Security Policy" in entry["message"]
    assert [failed["blockedReason"] for failed in network(window, "loadingFailed")] == ["csp"]


def test_a_table_keeps_its_meaning_on_a_phone(visit):
    window = visit("repair", 360)
    rows = window.execute_script("""
        const table = document.querySelector('.measures');
        return [...table.querySelectorAll('[role=row]')].map(
            r => [...r.querySelectorAll('[role=columnheader],[role=rowheader],[role=cell]')].length)
    """)
    assert rows == [6] * 6
    assert (
        window.execute_script("""
        return getComputedStyle(document.querySelector('.measures td'), '::before').content
    """)
        == '"Before"'
    )
