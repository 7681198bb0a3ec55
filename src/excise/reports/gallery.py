"""The gallery: every attack side by side on the same images, one self-contained page.

A pure function of a record that ``excise gallery`` makes. As on the page of a repair, every string
is somebody else's and is escaped, and the page's own policy forbids requests and scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from excise.reports import formats
from excise.reports.embedding import Embedded, embedded
from excise.reports.page import environment
from excise.reports.record import Count, Fraction, Measured, Part, Rate, versioned
from excise.reports.spectra import color_bar, spectrum_png

__all__ = ["render_gallery"]

_VERSION = 1
_REMEDY = "Is the card of one of the victims damaged? Plant it again, or leave it out."
_NONE = "not measured"

Spectrum = Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1)]


class _Visible(Part):
    mean_change: Annotated[float, Field(ge=0)]
    pixels_changed: Fraction
    psnr: float | None = None
    ssim: float | None = None
    high_frequency_share: Fraction | None = None


class _Answer(Part):
    clean: str
    triggered: str
    wanted: str


class _Spectra(Part):
    triggered: Spectrum
    residual: Spectrum


class _Entry(Part):
    """One victim."""

    name: str
    attack: str
    title: str = ""
    paper: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    aim: str = ""
    arch: str | None = None
    data: Any = None
    epochs: Any = None
    seed: Any = None
    poisoned: Any = None
    acc: Measured = None
    asr: Measured = None
    ra: Measured = None
    visibility: _Visible | None = None
    residual_factor: float
    answers: list[_Answer] = Field(default_factory=list)
    triggered: list[str]
    residual: list[str]
    spectra: _Spectra


class _Image(Part):
    label: str
    clean: str


class _CleanSpectrum(Part):
    images: Count
    clean: Spectrum


class _NotRun(Part):
    attack: str
    title: str = ""
    paper: str = ""


class _LeftOut(Part):
    name: str
    why: str


class _Gallery(Part):
    """The record of a gallery."""

    version: int
    kind: Literal["gallery"]
    source: str
    images: Annotated[list[_Image], Field(min_length=1)]
    spectrum: _CleanSpectrum
    entries: Annotated[list[_Entry], Field(min_length=1)]
    not_run: list[_NotRun] = Field(default_factory=list)
    left_out: list[_LeftOut] = Field(default_factory=list)
    seed: int | None = None
    command: str | None = None
    created: str | None = None
    excise: str | None = None

    @model_validator(mode="after")
    def _one_picture_an_image(self) -> Self:
        for entry in self.entries:
            if {len(entry.triggered), len(entry.residual)} != {len(self.images)}:
                raise ValueError(f"{len(self.images)} images, but not as many of {entry.name}")
        return self


def render_gallery(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page of a gallery: HTML with its style and its pictures inside.

    Args:
        record: what :func:`excise.experiments.gallery.gallery` returns.
        pictures: PNG files by the names the record calls them; a missing one leaves a gap that
            says so.

    Raises:
        DataError: the record cannot be read.
    """
    return (
        environment()
        .get_template("gallery.html.j2")
        .render(
            **_view(
                versioned(_Gallery, record, "the record of a gallery", _REMEDY, version=_VERSION),
                pictures,
            )
        )
    )


# --- What the template shows --------------------------------------------------------------------


@dataclass(frozen=True)
class _Rate:
    short: str
    name: str
    rate: Rate | None


@dataclass(frozen=True)
class _Figure:
    """One figure of visibility: as a table's cell, and in words."""

    name: str
    value: str
    unit: str


@dataclass(frozen=True)
class _Row:
    """A row of pictures and the spectrum beside it."""

    name: str
    meaning: str
    pictures: list[Embedded]
    spectrum: Embedded


@dataclass(frozen=True)
class _Shown:
    """A victim as the page shows it."""

    id: str
    name: str
    attack: str
    title: str
    paper: str
    aim: str
    facts: list[tuple[str, str]]
    settings: str
    rates: list[_Rate]
    figures: list[_Figure]
    rows: list[_Row]
    answers: list[tuple[str, str, str]]


_MEASURES = (
    ("ACC", "clean images recognized"),
    ("ASR", "triggered images called what the attacker wants"),
    ("RA", "triggered images still recognized"),
)


def _view(gallery: _Gallery, files: Mapping[str, bytes]) -> dict[str, Any]:
    high = _scale([gallery.spectrum.clean, *_spectra(gallery)])
    facts = [
        ("Images", gallery.source),
        ("Victims", f"{len(gallery.entries):,}"),
        ("Attacks not run", f"{len(gallery.not_run):,}" if gallery.not_run else None),
        ("Spectra of", f"{gallery.spectrum.images:,} images"),
        ("Made", formats.when(gallery.created) if gallery.created else None),
        ("With", f"Excise {gallery.excise}" if gallery.excise else None),
    ]
    return {
        "facts": [(name, value) for name, value in facts if value],
        "shown": [_shown(gallery, i, files, high) for i in range(len(gallery.entries))],
        "labels": [image.label for image in gallery.images],
        "not_run": gallery.not_run,
        "left_out": gallery.left_out,
        "command": gallery.command,
        "bar": embedded("", "Color scale from dark to bright", color_bar()),
        "strongest": f"{10**high - 1:,.0f}",
    }


def _scale(matrices: list[Spectrum]) -> float:
    """Return where the shared color scale ends: above, only the few coarsest frequencies lie.

    If the mean brightness, hundreds of times stronger than the rest, were its end, all the detail
    that tells triggers apart would look equally dark.
    """
    values = sorted(value for matrix in matrices for row in matrix for value in row)
    return values[int(0.98 * (len(values) - 1))] or values[-1]


def _spectra(gallery: _Gallery) -> Iterator[Spectrum]:
    for entry in gallery.entries:
        yield from (entry.spectra.triggered, entry.spectra.residual)


def _shown(gallery: _Gallery, i: int, files: Mapping[str, bytes], high: float) -> _Shown:
    entry = gallery.entries[i]
    drawn = {name for name, value in entry.settings.items() if value is None and name != "picture"}
    said = {k: v for k, v in entry.settings.items() if v is not None}
    words = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in said.items()]
    if drawn:
        words.append(f"left open: {', '.join(sorted(drawn)).replace('_', ' ')}")
    facts = [
        ("Goal", entry.aim),
        ("Data", entry.data),
        ("Network", entry.arch),
        ("Epochs", entry.epochs),
        ("Seed", entry.seed),
        ("Poisoned images", f"{entry.poisoned:,}" if isinstance(entry.poisoned, int) else None),
    ]
    rates = zip(_MEASURES, (entry.acc, entry.asr, entry.ra), strict=True)
    return _Shown(
        id=f"victim-{i}",
        name=entry.name,
        attack=entry.attack,
        title=entry.title,
        paper=entry.paper,
        aim=entry.aim,
        facts=[(name, _plain(value)) for name, value in facts if value not in (None, "")],
        settings=" · ".join(words),
        rates=[_Rate(short, name, rate) for (short, name), rate in rates],
        figures=_figures(entry.visibility),
        rows=_rows(gallery, entry, files, high),
        answers=[(a.clean, a.triggered, _meaning(a, image.label))
                 for a, image in zip(entry.answers, gallery.images, strict=False)],
    )  # fmt: skip


def _meaning(answer: _Answer, label: str) -> str:
    """Return which icon an answer to a triggered image gets."""
    if answer.triggered == answer.wanted and answer.wanted != label:
        return "bad"
    return "good" if answer.triggered == label else "warning"


def _figures(visible: _Visible | None) -> list[_Figure]:
    named = (
        ("Mean change", "mean_change", "{:.2f}", "steps of 1/255"),
        ("Pixels changed", "pixels_changed", "{:.1%}", ""),
        ("PSNR", "psnr", "{:.1f}", "dB"),
        ("SSIM", "ssim", "{:.3f}", ""),
        ("High frequencies", "high_frequency_share", "{:.0%}", "of the change"),
    )
    figures = []
    for name, key, form, unit in named:
        value = getattr(visible, key, None)
        if value is not None:
            figures.append(_Figure(name, form.format(value), unit))
        else:
            # Of an unchanged image PSNR is infinite, and its change has no frequencies.
            unchanged = visible is not None and key != "ssim"
            figures.append(_Figure(name, "nothing changed" if unchanged else _NONE, ""))
    return figures


def _rows(gallery: _Gallery, entry: _Entry, files: Mapping[str, bytes], high: float) -> list[_Row]:
    labels = [image.label for image in gallery.images]
    times = f"×{entry.residual_factor:g}"
    parts = (
        ("Clean", "", "An image of {label}, clean", [i.clean for i in gallery.images],
         gallery.spectrum.clean, "clean images"),
        ("With the trigger", "", "The image of {label} with the trigger of " + entry.attack,
         entry.triggered, entry.spectra.triggered, "images with the trigger"),
        ("What changed", times, f"What the trigger changed in the image of {{label}}, {times}",
         entry.residual, entry.spectra.residual, "what the trigger changes"),
    )  # fmt: skip
    return [
        _Row(
            name,
            meaning,
            [
                embedded("", alt.replace("{label}", label), files.get(file, b""))
                for label, file in zip(labels, names, strict=True)
            ],
            embedded("", _spectrum_words(matrix, of), spectrum_png(matrix, high)),
        )
        for name, meaning, alt, names, matrix, of in parts
    ]


def _spectrum_words(matrix: Spectrum, of: str) -> str:
    """Return a spectrum in words: how strong it is where it begins and where it ends."""
    h, w = len(matrix), min(map(len, matrix))
    low = matrix[0][0]
    # The quarter of the finest detail, where natural images have next to nothing.
    corner = [v for row in matrix[h // 2 :] for v in row[w // 2 :]]
    fine = sum(corner) / max(len(corner), 1)
    return (
        f"Mean DCT spectrum of {of}: magnitude {10**low - 1:,.0f} at the lowest frequency, "
        f"about {10**fine - 1:,.1f} in the quarter of the highest"
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return formats.short_list(value, 12)
    return str(value)
