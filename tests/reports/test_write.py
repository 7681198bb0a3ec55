"""From a directory to the page in it: whole or not at all, and never out of the directory."""

import json
import os

import pytest
from tests.reports import records

from excise.errors import DataError
from excise.reports import render_repair, write, write_report

pytestmark = pytest.mark.fast


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "repair"
    (directory / "pictures").mkdir(parents=True)
    for name, content in records.pictures().items():
        (directory / name).write_bytes(content)
    save(directory, records.plain())
    return directory


def save(directory, record):
    (directory / "record.json").write_text(json.dumps(record), encoding="utf-8")


def test_the_page_is_what_the_record_renders_to(home):
    path = write_report(home)
    assert path == home / "report.html"
    assert path.read_text(encoding="utf-8") == render_repair(records.plain(), records.pictures())
    assert sorted(p.name for p in home.iterdir()) == ["pictures", "record.json", "report.html"]


def test_a_second_report_replaces_the_first(home):
    write_report(home)
    save(home, records.bare())
    assert "Clean images only" in write_report(home).read_text(encoding="utf-8")


def test_missing_pictures_leave_gaps(home):
    (home / "pictures/0-clean.png").unlink()
    assert "no picture" in write_report(home).read_text(encoding="utf-8")


def test_no_record(tmp_path):
    with pytest.raises(DataError, match=r"got no such file\. Give the directory"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON in"),
        (b"\xff\xfe", "expected JSON in"),
        (b'{"version": 1, "loss": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "expected JSON in"),
        (b"1" * 5000, "expected JSON in"),
        (b"[]", "expected a JSON object"),
        (b'{"version": 2}', "Update Excise"),
        (b'{"version": 1, "kind": "repair"}', "every part of its own type and range"),
    ],
)
def test_a_damaged_record_leaves_the_old_page_alone(home, content, message):
    old = write_report(home).read_bytes()
    (home / "record.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_report(home)
    assert (home / "report.html").read_bytes() == old
    assert not list(home.glob(".report*"))


def test_a_huge_record_is_refused_unread(home, monkeypatch):
    monkeypatch.setattr(write, "_RECORD_BYTES", 100)
    with pytest.raises(DataError, match="expected a record of at most"):
        write_report(home)


@pytest.mark.parametrize("name", ["_PICTURE_BYTES", "_ALL_PICTURES"])
def test_huge_pictures_are_refused(home, monkeypatch, name):
    monkeypatch.setattr(write, name, 100)
    with pytest.raises(DataError, match=r"pictures of at most .* Make the pictures smaller"):
        write_report(home)


@pytest.mark.parametrize("where", ["../secret.png", "/{}/secret.png", "pictures/../../secret.png"])
def test_a_picture_outside_of_the_directory_is_refused(home, where):
    secret = home.parent / "secret.png"
    secret.write_bytes(records.pictures()["pictures/0-clean.png"])
    record = records.plain()
    record["pictures"][0]["clean"] = where.format(home.parent)
    save(home, record)
    with pytest.raises(DataError, match="points outside of its own directory"):
        write_report(home)
    assert not (home / "report.html").exists()


def test_a_link_out_of_the_directory_is_refused(home):
    secret = home.parent / "secret.png"
    secret.write_bytes(records.pictures()["pictures/0-clean.png"])
    (home / "pictures/0-clean.png").unlink()
    (home / "pictures/0-clean.png").symlink_to(secret)
    with pytest.raises(DataError, match="points outside of its own directory"):
        write_report(home)


@pytest.mark.parametrize("name", ["a\x00b", "x" * 5000, "pictures", "", "loop", "pipe"])
def test_a_name_that_is_no_file_leaves_a_gap(home, name):
    (home / "loop").symlink_to("loop")
    os.mkfifo(home / "pipe")
    record = records.plain()
    record["pictures"][0]["clean"] = name
    save(home, record)
    assert "no picture" in write_report(home).read_text(encoding="utf-8")
