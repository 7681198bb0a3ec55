"""Numbers and names as a person reads them."""

import pytest

from excise.reports import formats

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("value", "text"), [(0.93, "93.0%"), (1, "100.0%"), (0, "0.0%"), (0.00049, "0.0%")]
)
def test_percent(value, text):
    assert formats.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.012, "+1.2"), (-0.983, "−98.3"), (0, "0.0"), (-0.0001, "0.0")]
)
def test_signed(value, text):
    assert formats.signed(value) == text


def test_intervals():
    assert formats.value_text(0.93, 0.921, 0.938) == "93.0 (92.1–93.8)"
    assert formats.change_text(-0.007, -0.019, 0.004) == "−0.7 (−1.9 to +0.4)"
    assert formats.change_text(-0.007, None, None) == "−0.7"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.24, "9.2 s"), (200, "3 min 20 s"), (360_000, "100 h 0 min")],
)
def test_duration(seconds, text):
    assert formats.duration(seconds) == text


def test_memory():
    assert formats.memory(512.4) == "512 MiB"
    assert formats.memory(1536) == "1.5 GiB"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22 10:00 UTC"),
        ("2026-11-22T10:00:00+02:00", "2026-11-22 08:00 UTC"),
        ("2026-11-22T10:00:00", "2026-11-22 10:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_when(text, shown):
    assert formats.when(text) == shown


def test_a_long_list_is_cut_and_says_so():
    assert formats.short_list([1, 2, 3], 3) == "1, 2, 3"
    assert formats.short_list(range(1000), 2) == "0, 1, … (1,000 in all)"


def test_clean_takes_out_what_acts_and_keeps_what_is_read():
    assert formats.clean("a\x1b[31mb\ud800\u202ec\x00") == "a�[31mb��c�"
    assert formats.clean("Größe 数字 <b>\n\t") == "Größe 数字 <b>\n\t"
