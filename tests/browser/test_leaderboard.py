"""The leaderboard's page in a real browser: it ranks, sorts, filters, draws; offline, silently."""

import json
from pathlib import Path

import pytest
from tests.browser.test_report import CONTRAST, network
from tests.leaderboard.stores import HOSTILE, part, put, put_repairs, record, repair_of, rich

from excise.files import write_text
from excise.leaderboard import rank, read_runs
from excise.leaderboard.page import render_leaderboard


def write(home, records_of, name="page", **more):
    runs = read_runs(records_of)
    write_text(home / f"{name}.html", render_leaderboard(rank(runs, **more), runs, home))
    return runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a store and the pages made from it."""
    folder = tmp_path_factory.mktemp("boards")
    write(folder, rich(folder / "store"))
    strange = [
        record(defense, attack, seed=seed, asr=0.1 * (1 + seed))
        for defense in (HOSTILE, "=1+1")
        for attack in (HOSTILE, "__proto__")
        for seed in (0, 1)
    ]
    write(folder, put(folder / "strange", *strange), "hostile")
    attacks = [
        record("ft", attack, seed=seed, before=part(0.9, asr - 0.1 * seed, 0.0))
        for attack, asr in (("badnets", 0.9), ("blended", 0.5))
        for seed in (0, 1)
    ]
    write(folder, put(folder / "several", *attacks), "attacks", by=["attack"])
    repairs = [
        repair_of(d, asr=0.1 * i + 0.2 * s, attack={"name": a}, victim_seed=s, weights=f"{a}{s}{w}")
        for i, d in enumerate(("ft", "clp"))
        for a in ("badnets", "wanet")
        for s in (0, 1)
        for w in "ab"
    ]
    write(folder, put_repairs(folder / "repairs", *repairs), "repairs")
    write(folder, folder / "repairs", "repairs-by-attack", by=["attack"])
    one = put(folder / "single", record("ft", asr=None, ra=None, attack="none", spc=None))
    write(folder, one, "bare", order="acc")
    return folder


@pytest.fixture
def visit(chromium, home):
    """Open a page at a width, light or dark, and return the window."""

    def opened(name="page", width=1280, scheme="light", hash_=""):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get("about:blank")
        for log in ("browser", "performance"):
            chromium.get_log(log)
        chromium.get((home / f"{name}.html").as_uri() + hash_)
        return chromium

    return opened


BOARD = """
return [...document.querySelectorAll('.board tbody tr')].map(
    r => [...r.querySelectorAll('td, th')].map(c => c.innerText.trim()))
"""


def board(window):
    return window.execute_script(BOARD)


def names(window):
    return [row[1] for row in board(window)]


def choose(window, selector, value):
    window.execute_script(
        """
        const select = document.querySelector(arguments[0]);
        select.value = [...select.options].find(o => o.text === arguments[1]).value;
        select.dispatchEvent(new Event('change'));
        """,
        selector,
        value,
    )


def press(window, selector):
    window.execute_script("document.querySelector(arguments[0]).click()", selector)


@pytest.mark.parametrize("name", ["page", "hostile", "bare"])
def test_the_console_is_silent_and_nothing_is_requested(visit, name):
    window = visit(name)
    window.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert window.get_log("browser") == []
    asked = [sent["request"]["url"] for sent in network(window, "requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [window.current_url]
    assert names(window)


@pytest.mark.parametrize("width", [360, 800, 1280])
@pytest.mark.parametrize("name", ["page", "hostile", "bare"])
def test_the_page_never_scrolls_sideways(visit, name, width):
    window = visit(name, width)
    window.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    press(window, ".list tbody button")
    needed = window.execute_script("return document.scrollingElement.scrollWidth")
    assert needed <= width


def test_the_page_opens_with_the_very_figures_of_the_other_outputs(visit, home):
    ranking = rank(read_runs(home / "store"))
    rows = board(visit())
    assert [row[1] for row in rows] == [s.name for s in ranking.standings]
    for row, standing in zip(rows, ranking.standings, strict=True):
        for cell, name in zip(row[2:6], ("der", "acc", "asr", "ra"), strict=True):
            figure = standing.figures[name]
            said = cell.replace("–", " ").replace("worst", "").split()
            # Which way a tie is rounded differs between the two languages.
            stated = (figure.mean, figure.low, figure.high, figure.worst)
            assert list(map(float, said)) == pytest.approx([100 * v for v in stated], abs=0.0501)
        assert row[6].startswith(f"{round(100 * standing.kept)} %")


@pytest.mark.parametrize(
    ("filters", "order"),
    [({"attack": "badnets"}, "DER"), ({"spc": "2"}, "ASR"), ({"seed": "3"}, "worst-case RA"),
     ({"attack": "wanet", "spc": "10"}, "ACC"), ({}, "worst-case ASR")],
)  # fmt: skip
def test_what_the_page_ranks_by_itself_agrees_with_the_command(visit, home, filters, order):
    window = visit()
    for axis, value in filters.items():
        choose(window, f"#filters select[data-axis={axis}]", value)
    choose(window, "#order", order)
    name = order.lower().replace("worst-case ", "worst-")
    runs = read_runs(home / "store").where([f"{axis}={value}" for axis, value in filters.items()])
    ranking = rank(runs, order=name)
    rows = board(window)
    assert [row[1] for row in rows] == [s.name for s in ranking.standings]
    for row, standing in zip(rows, ranking.standings, strict=True):
        for cell, measure in zip(row[2:6], ("der", "acc", "asr", "ra"), strict=True):
            figure, parts = standing.figures[measure], cell.split("\n")
            assert float(parts[0]) == pytest.approx(100 * figure.mean, abs=0.06)
            assert float(parts[-1].split()[1]) == pytest.approx(100 * figure.worst, abs=0.06)
            if figure.low is not None:
                low, high = map(float, parts[1].split("–"))
                assert low == pytest.approx(100 * figure.low, abs=0.6)
                assert high == pytest.approx(100 * figure.high, abs=0.6)
        if standing.kept is not None:
            assert float(row[6].split()[0]) == pytest.approx(100 * standing.kept, abs=8)
    said = window.find_element("id", "said").text
    assert f"ranked on {ranking.shared} of {ranking.instances} setting" in said
    assert window.get_log("browser") == []


def test_the_figures_before_repair_are_those_of_all_networks(visit, home):
    window = visit("attacks")
    foot = "return document.querySelector('.board tfoot tr').children[4].innerText"
    assert window.execute_script(foot) == "65.0"
    choose(window, "#filters select[data-axis=seed]", "1")
    assert window.execute_script(foot) == "60.0"
    ranking = rank(read_runs(home / "several").where(["seed=1"]), ["attack"])
    assert ranking.references["before"]["asr"] == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["repairs", "repairs-by-attack"])
def test_victims_of_repairs_are_those_of_the_command(visit, home, name):
    window = visit(name)
    choose(window, "#filters select[data-axis=victim_seed]", "1")
    by = ["attack"] if name.endswith("attack") else ["defense"]
    ranking = rank(read_runs(home / "repairs").where(["victim_seed=1"]), by)
    [said] = {row[7] for row in board(window)}
    assert said == f"{ranking.shared} of {ranking.instances}"
    words = window.find_element("id", "said").text
    for noun, count in (("victim", ranking.victims), ("cell", ranking.cells)):
        assert f"{count} {noun}{'' if count == 1 else 's'}" in words
    title = "return document.querySelector('.board tbody td .link').title"
    cells = {standing.figures["der"].worst_cell for standing in ranking.ranked}
    assert window.execute_script(title) in {f"Worst: {cell}. Show its runs" for cell in cells}


def test_the_ranking_sorts_by_any_column_and_keyboard(visit):
    from selenium.webdriver.common.keys import Keys

    window = visit()
    assert names(window) == ["clp", "ft", "none"]
    button = window.find_element("css selector", "#ranking th button[data-key=acc]")
    button.send_keys(Keys.ENTER)
    assert names(window) == ["none", "ft", "clp"]
    focused = window.switch_to.active_element
    assert focused.get_attribute("data-key") == "acc"
    heading = "return document.querySelector('[data-key=acc]').parentElement.ariaSort"
    assert window.execute_script(heading) == "descending"
    focused.send_keys(Keys.SPACE)
    assert names(window) == ["clp", "ft", "none"]
    assert window.execute_script(heading) == "ascending"


def test_a_choice_is_in_the_address_and_comes_back(visit):
    window = visit()
    choose(window, "#filters select[data-axis=attack]", "blended")
    choose(window, "#order", "ACC")
    address = window.execute_script("return location.hash")
    rows = board(window)
    again = visit(hash_=address)
    assert board(again) == rows
    press(again, "#reset")
    assert "All 72 runs" in again.find_element("id", "said").text


def test_leaving_one_out_ranks_the_others(visit):
    window = visit()
    window.execute_script("document.querySelector('.choices details').open = true")
    window.execute_script("document.querySelectorAll('.boxes input')[0].click()")
    assert names(window) == ["ft", "none"]


def runs_listed(window):
    return window.execute_script("""
        return [...document.querySelectorAll('.list tbody tr')].map(
            r => [...r.cells].map(c => c.innerText.trim()))
    """)


def test_every_cell_leads_to_its_records(visit, home):
    window = visit()
    press(window, ".heat-table tbody button")
    assert window.execute_script("return document.activeElement.id") == "runs"
    rows = runs_listed(window)
    assert len(rows) == 8
    assert {(row[0], row[2]) for row in rows} <= {("clp", "badnets")} | {
        ("clp", row[2]) for row in rows
    }
    link = window.find_element("css selector", ".list tbody a")
    path = Path(link.get_attribute("href").removeprefix("file://"))
    one = json.loads(path.read_text())
    assert one["run"]["defense"]["name"] == "clp"
    assert one["run"]["attack"]["name"] == "badnets"
    window.execute_script("arguments[0].click()", link)
    assert one["key"] in window.page_source


def test_the_worst_cell_leads_to_its_seeds(visit):
    window = visit()
    press(window, ".board tbody td .link")
    rows = runs_listed(window)
    assert len(rows) == 4
    assert "clp" in window.find_element("id", "picked").text
    press(window, "#picked button")
    assert len(runs_listed(window)) == 50


def test_runs_are_sorted_and_turned(visit):
    window = visit()
    press(window, ".list th button[data-key=asr]")
    column = [row[-5] for row in runs_listed(window)]
    low = [float(v) for v in column if v not in ("—", "failed")]
    assert low == sorted(low)
    press(window, "#next")
    assert window.find_element("id", "where").text == "51–72 of 72 runs"
    assert any("failed" in row for row in runs_listed(window))
    assert window.find_element("id", "next").get_attribute("disabled")


def test_a_run_shows_what_its_record_holds(visit):
    window = visit()
    press(window, ".list th button[data-key=asr]")
    press(window, ".list tbody button")
    text = (
        window.find_element("css", "td.more")
        if False
        else window.execute_script("return document.querySelector('td.more').innerText")
    )
    for words in ("before 92.0", "clean twin 93.0", "1,000 images", "not-recovered", "abc1234",
                  "800 MiB", "repaired"):  # fmt: skip
        assert words in text
    press(window, ".list tbody button")
    assert not window.execute_script("return document.querySelector('td.more')")


def test_drawings_are_there_and_say_what_they_show(visit):
    for width in (360, 1280):
        found = visit(width=width).execute_script("""
            return [...document.querySelectorAll('.drawings svg')].map(s => [
                s.querySelector('title').textContent, s.querySelector('desc').textContent,
                s.getBoundingClientRect().width, s.querySelectorAll('.dot').length])
        """)
        assert [row[0] for row in found] == [
            "ASR against accuracy lost", "DER against seconds", "DER by SPC"
        ]  # fmt: skip
        for _, words, drawn, dots in found:
            assert "1. clp" in words or "clp:" in words
            assert 240 < drawn < width
            assert dots >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["page", "bare"])
def test_every_text_has_contrast(visit, name, scheme):
    window = visit(name, scheme=scheme)
    window.execute_script("""
        for (const d of document.querySelectorAll('details')) d.open = true;
        for (const n of document.querySelectorAll('.drawings svg .number')) n.remove();
    """)
    assert window.execute_script(CONTRAST) == []


def test_names_are_text_and_nothing_else(visit):
    window = visit("hostile")
    assert window.execute_script("return document.images.length") == 0
    assert window.execute_script("return document.scripts.length") == 2
    choose(window, "#filters select[data-axis=attack]", "__proto__")
    assert len(names(window)) == 2
    assert any("<img src=x" in name for name in names(window))
    assert window.get_log("browser") == []


def test_the_policy_stops_scripts_that_get_in(visit):
    window = visit()
    window.execute_script("""
        const script = document.createElement('script');
        script.textContent = 'window.got = 1';
        document.body.append(script);
    """)
    assert window.execute_script("return window.got") is None
    assert "Content Security Policy" in window.get_log("browser")[0]["message"]


def test_a_page_far_from_its_store_has_no_links(tmp_path, home):
    folder = tmp_path / "a" / "b" / "c"
    runs = read_runs(home / "store")
    page = render_leaderboard(rank(runs), runs, folder)
    assert '"base":null' in page
    assert str(home) not in page
    assert home.parent.name not in page
