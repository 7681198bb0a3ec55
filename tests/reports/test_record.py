"""What a report reads from a record, and what it refuses."""

import math

import pytest
from tests.reports import records

from excise.errors import DataError
from excise.reports import render_repair
from excise.reports.record import doubts, read_record, record_json

pytestmark = pytest.mark.fast


def test_a_full_and_a_bare_record_are_read():
    full, bare = read_record(records.repair()), read_record(records.bare())
    assert full.target == 3
    assert full.setting("defense", "inverter", "name") == "oracle"
    assert full.setting("defense", "no such", "name") is None
    assert bare.target is None
    assert bare.setting("seed") is None
    assert doubts(full) == doubts(bare) == []


def test_the_data_may_be_named_beside_or_among_its_facts():
    record = records.repair()
    assert read_record(record).source == "digits"
    record["spec"]["source"] = record["spec"]["data"].pop("source")
    assert read_record(record).source == "digits"
    assert read_record(records.bare()).source is None


def test_the_measured_target_comes_before_the_planned_one():
    record = records.repair()
    record["spec"]["model"]["attack"]["target"] = None
    assert read_record(record).target == 3
    record["after"]["target"] = 10
    assert read_record(record).target is None


def test_a_rate_of_no_images_reads_as_not_measured():
    record = records.plain()
    record["floor"]["asr"] = {"value": None, "low": 0.0, "high": 1.0, "count": 0, "n": 0}
    assert read_record(record).floor.asr is None
    assert "not measured" in render_repair(record, {})


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_a_record_without_a_version_is_refused(version):
    with pytest.raises(DataError, match="states no record version") as caught:
        read_record({**records.bare(), "version": version})
    assert "`excise repair`" in caught.value.remedy


@pytest.mark.parametrize("what", [[], None, "record"])
def test_what_is_no_record_at_all_is_refused(what):
    with pytest.raises(DataError, match="states no record version"):
        read_record(what)


def test_a_newer_record_is_refused_and_says_what_to_do():
    with pytest.raises(DataError, match=r"version 1 or older, got version 2\. Update Excise"):
        read_record({**records.bare(), "version": 2})


def test_a_record_of_another_kind_is_refused():
    with pytest.raises(DataError, match="got a record of kind 'scan'"):
        read_record({**records.bare(), "kind": "scan"})


def _bad_rate(record):
    record["before"]["acc"]["value"] = 1.2


def _missing(record):
    del record["after"]


def _lopsided(record):
    record["after"]["confusion"][2].pop()


def _unnamed(record):
    record["after"]["classes"] = record["after"]["classes"][:-1]


def _no_such_filter(record):
    record["filters"][0]["cut"] = [8]


def _cut_twice(record):
    record["filters"][0]["cut"] = [1, 1]


def _text_for_number(record):
    record["curve"][0]["round"] = "0"


def _not_a_number(record):
    record["after"]["acc"]["low"] = math.nan


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (_bad_rate, "before.acc.value"),
        (_missing, "after: Field required"),
        (_lopsided, "after: Value error, a confusion matrix must be square"),
        (_unnamed, "after: Value error, a confusion matrix"),
        (_no_such_filter, "filters.0: Value error, filter 8 was cut from a layer of 8"),
        (_cut_twice, "filters.0: Value error, the same filter was cut twice"),
        (_text_for_number, "curve.0.round"),
        (_not_a_number, "after.acc.low"),
    ],
)
def test_a_damaged_part_is_named(damage, place):
    record = records.repair()
    damage(record)
    with pytest.raises(DataError) as caught:
        read_record(record)
    assert caught.value.got.startswith(f"at {place}")
    assert "run the repair again" in caught.value.remedy


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object()])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(DataError, match="a record that JSON can hold"):
        render_repair({**records.bare(), "history": [{"stage": "tune", "loss": value}]}, {})


def test_endless_nesting_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DataError, match="more than 40 deep"):
        record_json({"a": deep})


def test_the_record_is_suspected():
    record = records.plain()
    record["after"]["asr"] |= {"value": 0.5, "low": 0.6, "high": 0.7}
    record["comparison"]["delta_acc"]["value"] *= -1
    record["pruned"]["ra"]["value"] = 1.0
    found = [check.message for check in doubts(read_record(record))]
    assert [m.split(" is ")[0] for m in found] == [
        "pruned.ra",
        "pruned.ra lies outside its own interval.",
        "In pruned, ASR and RA add up to more than all images.",
        "after.asr",
        "after.asr lies outside its own interval.",
        "In after, ASR and RA add up to more than all images.",
        "comparison.delta_acc",
        "comparison.delta_asr",
    ]
    page = render_repair(record, {})
    assert "Problem" in page
    assert "its interval is left out" in page
