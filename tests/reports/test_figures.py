"""The figures: true to the numbers, with words beside them, the same every time."""

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from tests.reports import records

from excise.reports import figures
from excise.reports.record import Evaluation, Layer, Round

pytestmark = pytest.mark.fast

SVG = "{http://www.w3.org/2000/svg}"


def rounds(*asr, kept=None):
    return [
        Round(round=i, acc=0.9, asr=a, ra=None, kept=kept is None or i <= kept)
        for i, a in enumerate(asr)
    ]


def full():
    record = records.repair()
    return [Round(**r) for r in record["curve"]], Evaluation(**record["after"])


@pytest.mark.parametrize("narrow", [False, True])
def test_the_curve_is_sound_svg_with_words_and_nothing_to_load(narrow):
    drawing = figures.pruning_curve(*full(), name="c", narrow=narrow)
    root = ET.fromstring(drawing)
    assert root.get("role") == "img"
    title, words = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {words.get('id')}"
    assert "41 rounds" in words.text
    assert not re.search(r"<style|<script|<image|@import", drawing)
    assert re.findall(r"https?://[^\"]*", drawing) == ["http://www.w3.org/2000/svg"]


def test_every_color_of_the_curve_is_a_variable():
    drawing = figures.pruning_curve(*full(), name="c")
    assert not re.search(r"[:\"] ?#[0-9a-f]{6}", drawing)
    assert {"--acc", "--asr", "--ra"} <= set(re.findall(r"var\((--\w+)", drawing))


def test_ids_are_unique_and_all_references_resolve():
    both = figures.pruning_curve(*full(), name="a") + figures.pruning_curve(*full(), name="b")
    ids = re.findall(r'\bid="([^"]+)"', both)
    assert len(ids) == len(set(ids))
    assert all(i.startswith(("a-", "b-")) for i in ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', both)
    assert {a or b for a, b in used} <= set(ids)


def test_the_curve_is_the_same_every_time():
    assert figures.pruning_curve(*full(), name="c") == figures.pruning_curve(*full(), name="c")


def test_the_curve_says_what_was_kept_and_what_was_undone():
    drawing = figures.pruning_curve(rounds(1, 0.8, 0.4, 0.2, 0.1, kept=3), None, name="c")
    assert ">kept to round 3<" in drawing
    assert ">undone<" in drawing
    early = figures.pruning_curve(rounds(1, 0.8, 0.4, 0.2, 0.1, kept=0), None, name="c")
    assert ">undone after round 0<" in early
    assert "undone" not in figures.pruning_curve(rounds(1, 0.5), None, name="c")


@pytest.mark.parametrize(
    "curve", [rounds(1.0), rounds(None), rounds(None, None), rounds(1.0, None, 0.5)]
)
def test_short_and_broken_curves_are_drawn(curve):
    ET.fromstring(figures.pruning_curve(curve, None, name="c"))


def test_a_curve_without_any_value_is_drawn():
    ET.fromstring(figures.pruning_curve([Round(round=0), Round(round=1)], None, name="c"))


def test_the_curve_in_words():
    words = figures.curve_summary(rounds(1, 0.5, 0.25, kept=1), None)
    assert words == (
        "Over the first round, ACC went from 90.0% to 90.0% and ASR went from 100.0% to 50.0%. "
        "1 further round was tried and undone."
    )
    assert figures.curve_summary(rounds(1, 0.5, 0.3), None).startswith("Over 2 rounds, ACC")
    assert figures.curve_summary(rounds(1, 0.5, kept=0), None).startswith("No round was kept.")


def test_rounds_between_the_points_of_a_long_curve_count_too():
    every = rounds(*[1 - n / 250 for n in range(201)], kept=187)
    some = [r for r in every if r.round % 4 == 0 or r.round == 187]
    words = figures.curve_summary(some, None)
    assert words.startswith("Over 187 rounds,")
    assert words.endswith("13 further rounds were tried and undone.")


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 1], [0.2, 0.9], []])
def test_labels_keep_their_distance_and_stay_inside(values):
    heights = sorted(figures._spread(values, 0.1))
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(heights))
    assert all(-0.01 <= h <= 1 for h in heights)


def cells(drawing):
    """The number of cells a strip draws in all, and at which of them something was cut."""
    areas = re.findall(r'<rect [^>]*width="(\d+)" height="(\d+)"', drawing)
    cut = [
        (int(level), int(x) // 10, int(y) // 10)
        for level, path in re.findall(r'class="cut-(\d)" d="([^"]*)"', drawing)
        for x, y in re.findall(r"M(\d+) (\d+)h", path)
    ]
    return sum(int(w) * int(h) // 100 for w, h in areas), cut


def test_each_filter_is_a_cell_and_each_cut_one_filled():
    strips = figures.filter_strips([Layer(layer="a", filters=70, cut=[0, 63, 64, 69])])
    total, cut = cells(strips[0].drawing)
    assert total == 70
    assert cut == [(4, 0, 0), (4, 63, 0), (4, 0, 1), (4, 5, 1)]
    assert strips[0].share == 4 / 70


def test_a_wide_layer_shares_cells_and_shades_them():
    layers = [Layer(layer="a", filters=2049, cut=[0, *range(5, 10), *range(10, 13), 2048])]
    total, cut = cells(figures.filter_strips(layers)[0].drawing)
    assert figures.filter_strips(layers)[0].per_cell == 5
    assert total == 410
    assert cut == [(1, 0, 0), (1, 409 % 64, 409 // 64), (3, 2, 0), (4, 1, 0)]


def test_the_map_of_a_deep_network_stays_small():
    record = records.very_deep()
    assert sum(x["filters"] for x in record["filters"]) == 63_728
    strips = figures.filter_strips([Layer(**x) for x in record["filters"]])
    assert sum(len(s.drawing) for s in strips) < 150_000
    assert all('viewBox="0 0 640 10"' in s.drawing for s in strips)


def test_mistakes_are_counted_most_frequent_first():
    matrix = [[5, 2, 0], [0, 7, 3], [1, 0, 9]]
    assert figures.mistakes(matrix) == [(1, 2, 3, 10), (0, 1, 2, 7), (2, 0, 1, 10)]
    assert figures.mistakes(matrix, 1) == [(1, 2, 3, 10)]
    assert figures.mistakes([[1, 0], [0, 1]]) == []


def test_the_heat_map_names_every_cell():
    names = [f"<{i}>&" for i in range(20)]
    matrix = [[3 if i == j else int(j == 0) for j in range(20)] for i in range(20)]
    root = ET.fromstring(figures.heat_map(matrix, names, name="h", title="T", target=0))
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert titles[0] == "T"
    assert "<4>& called <0>&: 1 of 4" in titles
    assert "<4>& called <4>&: 3 of 4" in titles
    assert len(titles) == 1 + 20 + 19
    words = root.find(f"{SVG}desc").text
    assert words == (
        "60 of 79 images got their true class. Most frequent mistake: <1>& called <0>&, 1 of 4."
    )


def test_an_empty_heat_map_is_drawn():
    empty = [[0] * 20 for _ in range(20)]
    drawing = figures.heat_map(empty, ["x"] * 20, name="h", title="T")
    assert ET.fromstring(drawing).find(f"{SVG}desc").text.startswith("0 of 0")
