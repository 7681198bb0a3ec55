"""The figures of a report, as inline SVG; every one has a title and a description in words.

Colors are CSS variables with the light scheme's color as fallback, so that one drawing serves
light and dark pages and still stands alone. Blue, vermilion and green stay apart for every
common kind of color blindness, and nothing is told by color alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from excise.reports.formats import clean, percent
from excise.reports.record import Evaluation, Layer, Round

__all__ = [
    "Strip",
    "curve_summary",
    "filter_strips",
    "heat_map",
    "mistakes",
    "pruning_curve",
]

# Matplotlib is given colors that nothing else uses; each is then replaced by its CSS variable.
_INK, _MUTED, _RULE, _PAPER, _SHADE = "#000001", "#000002", "#000003", "#000004", "#000005"
_ACC, _ASR, _RA = "#000006", "#000007", "#000008"
_VARIABLES = {
    _INK: "var(--ink, #1d1c1a)",
    _MUTED: "var(--muted, #5f5b55)",
    _RULE: "var(--rule, #ddd8d0)",
    _PAPER: "var(--card, #ffffff)",
    _SHADE: "var(--shade, #efebe4)",
    _ACC: "var(--acc, #1f5fa8)",
    _ASR: "var(--asr, #b4430f)",
    _RA: "var(--ra, #1b7355)",
}


@dataclass(frozen=True)
class _Series:
    key: str
    label: str
    color: str
    marker: str
    dashes: Any


_SERIES = (
    _Series("acc", "ACC", _ACC, "o", "-"),
    _Series("asr", "ASR", _ASR, "s", (0, (5, 1.6))),
    _Series("ra", "RA", _RA, "^", (0, (1.4, 1.4))),
)


def pruning_curve(
    curve: Sequence[Round], after: Evaluation | None, *, name: str, narrow: bool = False
) -> Markup:
    """Return ACC, ASR and RA by round, and beside them the finished repair with its intervals.

    Args:
        curve: the rounds, at least one.
        after: the finished repair; None leaves its panel out.
        name: what the ids in the drawing begin with; unique on its page.
        narrow: draw it for a phone.
    """
    # Imported here: it takes a second, and most of the command line never draws.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 11.5 if narrow else 12.5,
        "font.family": "DejaVu Sans",  # comes with Matplotlib: the same layout everywhere
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _RULE,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "grid.color": _RULE,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.7, 4.4) if narrow else (12.0, 4.6))
        widths = (1,) if after is None else (1.7, 1) if narrow else (4.6, 1)
        axes = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        figure.subplots_adjust(
            left=0.135 if narrow else 0.055, right=0.995, top=0.92, bottom=0.125, wspace=0.05
        )
        _draw_rounds(axes[0], curve)
        if after is not None:
            _draw_end(axes[1], after)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return _inline(buffer.getvalue(), name, "The pruning curve", curve_summary(curve, after))


def _draw_rounds(axes: Any, curve: Sequence[Round]) -> None:
    rounds = [r.round for r in curve]
    lines = {
        s: [math.nan if v is None else v for v in (getattr(r, s.key) for r in curve)]
        for s in _SERIES
        if any(getattr(r, s.key) is not None for r in curve)
    }
    for series, values in lines.items():
        axes.plot(
            rounds,
            values,
            color=series.color,
            linestyle=series.dashes,
            linewidth=2.2,
            marker=series.marker if len(rounds) <= 30 else None,
            markersize=4.5,
        )
        _label_line(axes, series, rounds, lines)
    kept = [r.round for r in curve if r.kept]
    if kept and kept[-1] < rounds[-1]:
        axes.axvspan(kept[-1], rounds[-1], facecolor=_SHADE, edgecolor="none", zorder=0)
        axes.axvline(kept[-1], color=_MUTED, linewidth=1.2)
        room = kept[-1] - rounds[0] >= 0.5 * (rounds[-1] - rounds[0])
        undone = "undone" if room else f"undone after round {kept[-1]:,}"
        words = [(undone, 7, "left"), (f"kept to round {kept[-1]:,}", -7, "right")]
        for text, offset, side in words if room else words[:1]:
            axes.annotate(
                text,
                (kept[-1], 1.07),
                xytext=(offset, 0),
                textcoords="offset points",
                ha=side,
                color=_MUTED,
                annotation_clip=False,
            )
    margin = max(rounds[-1] - rounds[0], 1) * 0.015
    axes.set_xlim(rounds[0] - margin, rounds[-1] + margin)
    axes.set_xlabel("pruning round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _frame(axes)


def _label_line(
    axes: Any, series: _Series, rounds: list[int], lines: dict[_Series, list[float]]
) -> None:
    """Write a line's name where it is farthest from the other lines."""
    own = lines[series]
    others = [values for other, values in lines.items() if other is not series]
    best, gap = len(own) // 2, -1.0
    for i in range(len(own) // 12, len(own) - len(own) // 12):
        room = min((abs(own[i] - v[i]) for v in others if not math.isnan(v[i])), default=1.0)
        if not math.isnan(own[i]) and room > gap:
            best, gap = i, room
    here = own[best]
    if math.isnan(here):
        return
    near = [v[best] for v in others if not math.isnan(v[best])]
    above = min([v - here for v in near if v > here] + [1.02 - here])
    below = min([here - v for v in near if v <= here] + [here + 0.02]) > above
    axes.annotate(
        series.label,
        (rounds[best], own[best]),
        xytext=(0, -7 if below else 7),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        color=series.color,
        weight="bold",
        bbox={"facecolor": _PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.75},
    )


def _draw_end(axes: Any, after: Evaluation) -> None:
    rates = [(s, r) for s in _SERIES if (r := getattr(after, s.key)) is not None]
    heights = _spread([r.value for _, r in rates], 0.075)
    for i, ((series, rate), height) in enumerate(zip(rates, heights, strict=True)):
        axes.errorbar(
            0.13 * i,
            rate.value,
            yerr=[[max(rate.value - rate.low, 0)], [max(rate.high - rate.value, 0)]],
            color=series.color,
            marker=series.marker,
            markersize=6.5,
            capsize=4,
            linewidth=1.6,
        )
        axes.annotate(
            f"{series.label} {percent(rate.value)}",
            (0.42, height),
            va="center",
            color=series.color,
            weight="bold",
        )
    axes.set_xlim(-0.15, 1.3)
    axes.set_xticks([])
    axes.set_xlabel("repaired")
    _frame(axes)
    axes.tick_params(labelleft=False)


def _frame(axes: Any) -> None:
    axes.set_ylim(-0.03, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.tick_params(length=0, pad=6)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Return heights near ``values``, at least ``gap`` apart and within [0, 1]."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    heights = list(values)
    for low, high in pairwise(order):
        heights[high] = max(heights[high], heights[low] + gap)
    for high, low in pairwise(reversed(order)):
        heights[high] = min(heights[high], 1.0)
        heights[low] = min(heights[low], heights[high] - gap)
    return heights


def _inline(svg: str, name: str, title: str, description: str) -> Markup:
    """Turn a stand-alone drawing of Matplotlib's into one that fits into a page.

    Everything in it comes from this file (no class or layer name reaches Matplotlib).
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the page
    svg = re.sub(r'\bid="(?![pmh][0-9a-f]{10}")[^"]*"', "", svg)  # what nothing refers to
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 inherit", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"\s+", " ", svg)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', opening)
    head = _head(name, box.group(1) if box else "", title, description)
    return head + Markup(rest.strip())


def _head(name: str, box: str, title: str, description: str, css: str = "chart") -> Markup:
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="{css}" viewBox="{box}" role="img" '
        'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{title}</title>'
        '<desc id="{name}-desc">{description}</desc>'
    ).format(css=css, box=box, name=name, title=title, description=description)


def curve_summary(curve: Sequence[Round], after: Evaluation | None) -> str:
    """Return what the pruning curve shows, in words."""
    kept = [r for r in curve if r.kept] or list(curve)
    first, best = kept[0], kept[-1]
    parts = [
        f"{s.label} went from {percent(old)} to {percent(new)}"
        for s in _SERIES
        if (old := getattr(first, s.key)) is not None and (new := getattr(best, s.key)) is not None
    ]
    span = "the first round" if best.round == 1 else f"{best.round:,} rounds"
    text = f"Over {span}, {_and(parts)}." if parts and best.round else "No round was kept."
    # Of a long pruning the curve has a point now and then: rounds are counted by their numbers.
    undone = curve[-1].round - best.round if not curve[-1].kept else 0
    if undone:
        what = "1 further round was" if undone == 1 else f"{undone:,} further rounds were"
        text += f" {what} tried and undone."
    if after is not None:
        rates = [(s.label, getattr(after, s.key)) for s in _SERIES]
        ends = [f"{label} {percent(rate.value)}" for label, rate in rates if rate]
        text += f" The finished repair: {_and(ends)}."
    return text


def _and(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


# --- The filter map ---------------------------------------------------------------------------

_COLUMNS = 64  # cells in a line
_LINES = 160  # lines on the page, about; what a whole map may grow to
_UNIT = 10


@dataclass(frozen=True)
class Strip:
    """A layer's line in the filter map; ``drawing`` goes with the words, not instead of them."""

    layer: str
    filters: int
    cut: tuple[int, ...]
    per_cell: int
    drawing: Markup

    @property
    def share(self) -> float:
        """The fraction of the layer's filters that was cut."""
        return len(self.cut) / self.filters


def filter_strips(layers: Sequence[Layer]) -> list[Strip]:
    """Return every layer with its filters as cells, the cut ones filled.

    A cell is one filter as long as a map of this many layers has room for it, else several; its
    filling then rises with the share that was cut.
    """
    lines = max(1, min(8, _LINES // max(len(layers), 1)))
    columns = min(_COLUMNS, max([32, *(x.filters for x in layers)]))
    return [_strip(layer, columns, lines) for layer in layers]


def _strip(layer: Layer, columns: int, lines: int) -> Strip:
    per_cell = math.ceil(layer.filters / (columns * lines))
    cells = math.ceil(layer.filters / per_cell)
    counts: dict[int, int] = {}
    for index in layer.cut:
        counts[index // per_cell] = counts.get(index // per_cell, 0) + 1
    levels: dict[int, list[int]] = {}
    for cell, count in sorted(counts.items()):
        holds = min(per_cell, layer.filters - cell * per_cell)
        levels.setdefault(math.ceil(4 * count / holds), []).append(cell)
    full, rest = divmod(cells, columns)
    blocks = [(full, columns), (1, rest)] if rest else [(full, columns)]
    base, y = [], 0
    for height, width in blocks:
        if height:
            base.append(
                f'<rect fill="url(#filter-cell)" y="{y}" '
                f'width="{width * _UNIT}" height="{height * _UNIT}"/>'
            )
            y += height * _UNIT
    cuts = [
        f'<path class="cut-{level}" d="{_squares(chosen, columns)}"/>'
        for level, chosen in sorted(levels.items())
    ]
    drawing = (
        f'<svg class="strip" viewBox="0 0 {columns * _UNIT} {y}" aria-hidden="true" '
        f'focusable="false">{"".join(base)}{"".join(cuts)}</svg>'
    )
    return Strip(
        layer.layer,
        layer.filters,
        tuple(sorted(layer.cut)),
        per_cell,
        Markup(drawing),
    )


def _squares(cells: Iterable[int], columns: int) -> str:
    return "".join(
        f"M{cell % columns * _UNIT} {cell // columns * _UNIT}h8.6v8.6h-8.6z" for cell in cells
    )


# --- Confusion --------------------------------------------------------------------------------


def mistakes(
    matrix: Sequence[Sequence[int]], most: int | None = None
) -> list[tuple[int, int, int, int]]:
    """Return ``(true class, said class, how often, of how many)``, most frequent first."""
    rows = [
        (truth, said, count, sum(row))
        for truth, row in enumerate(matrix)
        for said, count in enumerate(row)
        if count and said != truth
    ]
    return sorted(rows, key=lambda r: (-r[2], r[0], r[1]))[:most]


def heat_map(
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    *,
    name: str,
    title: str,
    target: int | None = None,
) -> Markup:
    """Return a confusion matrix of many classes as a drawing; each cell says what it counts.

    Rows are true classes, columns what the network said, both numbered from 0.
    """
    size, edge, cell = len(matrix), 26, 12
    total = sum(map(sum, matrix))
    right = sum(row[i] for i, row in enumerate(matrix))
    worst = mistakes(matrix, 1)
    words = f"{right:,} of {total:,} images got their true class."
    if worst:
        truth, said, count, of = worst[0]
        words += (
            f" Most frequent mistake: {clean(classes[truth])} called {clean(classes[said])}, "
            f"{count:,} of {of:,}."
        )
    span = size * cell
    parts = [
        _head(name, f"0 0 {edge + span + 1} {edge + span + 1}", title, words, "heat"),
        Markup('<rect class="field" x="{0}" y="{0}" width="{1}" height="{1}"/>').format(edge, span),
    ]
    for i in range(size):
        middle = edge + i * cell + cell / 2
        css = "axis target" if i == target else "axis"
        parts.append(
            Markup(
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                '<text class="{}" x="{}" y="{}" text-anchor="middle">{}</text>'
            ).format(edge - 4, middle + 3, i, css, middle, edge - 5, i)
        )
    for truth, row in enumerate(matrix):
        of = sum(row)
        for said, count in enumerate(row):
            if count:
                parts.append(
                    Markup(
                        '<rect class="{}" x="{}" y="{}" width="{}" height="{}" '
                        'fill-opacity="{}"><title>{} called {}: {:,} of {:,}</title></rect>'
                    ).format(
                        "right" if said == truth else "wrong",
                        edge + said * cell,
                        edge + truth * cell,
                        cell - 1,
                        cell - 1,
                        f"{0.22 + 0.78 * count / of:.2f}",
                        clean(classes[truth]),
                        clean(classes[said]),
                        count,
                        of,
                    )
                )
    if target is not None:
        parts.append(
            Markup('<rect class="mark" x="{}" y="{}" width="{}" height="{}"/>').format(
                edge + target * cell - 0.5, edge - 0.5, cell, span
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])
