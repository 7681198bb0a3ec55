"""From records to a table: nothing is believed, nothing is lost, nothing is read twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.leaderboard.stores import HOSTILE, failed, put, record, repair_of

from excise.errors import DataError
from excise.experiments.store import RECORD_VERSION
from excise.leaderboard import read_runs
from excise.leaderboard.flat import flatten, parse
from excise.leaderboard.reading import CACHE, read_table
from excise.reports.record import VERSION


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = put(tmp_path / "store", record("ft"), record("clp"), failed("anp"))
    age(made)
    return made


def age(store: Path, seconds: int = 100) -> None:
    """Make every record older than the clock's doubt, so that a cache believes it."""
    for path in store.glob("records/*/*.json"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def test_the_store_and_the_leaderboard_mean_the_same_version() -> None:
    assert RECORD_VERSION == VERSION


# --- a row ---------------------------------------------------------------------------------------


def test_a_record_becomes_a_row() -> None:
    one = record({"name": "grad-prune", "inverter": {"name": "oracle", "steps": 3}}, spc=None)
    row = flatten(one, one["key"])
    assert row["status"] == "done"
    assert row["data"] == "cifar10"
    assert row["attack"] == "badnets"
    assert row["attack.poison_ratio"] == "0.1"
    assert row["attack.target"] == "null"
    assert row["defense"] == "grad-prune"
    assert row["defense.inverter"] == "oracle"
    assert row["defense.inverter.steps"] == "3"
    assert row["spc"] == "all"
    assert row["seed"] == "0"
    assert row["twin"] == "true"
    assert (row["after.acc"], row["after.asr"], row["after.ra"]) == (0.9, 0.1, 0.8)
    assert (row["before.asr"], row["floor.asr"], row["after.target_recall"]) == (1.0, 0.01, 0.9)
    assert row["der"] == pytest.approx((0.9 - 0.02 + 1) / 2)
    assert row["der.low"] < row["der"] < row["der.high"]
    assert (row["after.acc.n"], row["seconds"], row["peak_memory_mib"]) == (1000, 10.0, 800.0)
    assert (row["device"], row["revision"], row["findings"]) == ("cpu", "abc1234", "not-recovered")


def test_der_is_worked_out_where_the_record_has_none() -> None:
    one = record(acc=0.88, asr=0.1, comparison=None)
    assert flatten(one, one["key"])["der"] == pytest.approx((0.9 - 0.04 + 1) / 2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"after": None}, "no accuracy"),
        ({"after": {}}, "no accuracy"),
        ({"after": {"acc": 0.9}}, "after.acc is no rate"),
        ({"after": {"acc": {"value": 1e308, "low": 0, "high": 1, "n": 5}}}, "after.acc is no frac"),
        ({"after": {"acc": {"value": 0.5, "low": 0, "high": 1, "n": 10**40}}}, "no number of"),
        ({"after": {"acc": {"value": 0.5, "low": 0, "high": 1, "n": True}}}, "no number of"),
        ({"after": {"acc": {"value": "NaN", "low": 0, "high": 1, "n": 5}}}, "no fraction"),
        ({"comparison": {"der": {"value": 7, "low": 0, "high": 1}}}, "comparison.der"),
        ({"run": "all of them"}, "which run"),
        ({"run": {"der": 1}}, "a setting called 'der'"),
        ({"run": {HOSTILE: 1}}, "a setting called"),
        ({"run": {"data": "x" * 5000}}, "5,000 characters"),
        ({"run": {f"a{i}": i for i in range(400)}}, "more than 300 settings"),
        ({"status": "perhaps"}, "not the record of its name"),
        ({"key": "other"}, "not the record of its name"),
        ({"version": "1"}, "no version"),
        ({"version": True}, "no version"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(change: dict[str, object], why: str) -> None:
    one = record()
    row = flatten(one | change, one["key"])
    assert row["status"] == "damaged"
    assert why in row["why"]


def test_what_may_be_missing_may_be_missing() -> None:
    one = record(asr=None)
    for name in ("floor", "comparison", "seconds", "environment", "checks", "verdict", "created"):
        one.pop(name)
    row = flatten(one, one["key"])
    assert row["status"] == "done"
    assert row.get("after.asr") is None
    assert row.get("seconds") is None


def test_impossible_times_are_left_out() -> None:
    one = record(seconds=1e300, peak_memory_mib=-1)
    row = flatten(one, one["key"])
    assert row["seconds"] is None
    assert row["peak_memory_mib"] is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["version", "status", "key", "run", "after", "acc", "value", "n", "name"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(anything)
def test_no_record_is_too_strange(value: object) -> None:
    assert flatten(value, "k")["status"] in ("done", "failed", "newer", "damaged")


@given(st.sampled_from(sorted(record())), anything)
def test_no_part_of_a_record_is_too_strange(name: str, value: object) -> None:
    one = record()
    assert flatten(one | {name: value}, one["key"])["status"] in (
        "done",
        "failed",
        "newer",
        "damaged",
    )


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"NaN", b'{"a": Infinity}', b"[" * 100_000])
def test_what_is_no_json_raises(text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        parse(text)


# --- a store -------------------------------------------------------------------------------------


def test_damaged_newer_and_failed_records_are_counted_and_left_alone(store: Path) -> None:
    folder = store / "records" / "aa"
    folder.mkdir(exist_ok=True)
    texts = {
        "aa1": "{ half", "aa2": '{"version": 99}', "aa3": "[]", "aa4": '{"version": 1, "x": NaN}',
        "aa5": "[" * 100_000, "aa6": '{"n": ' + "9" * 5000 + "}",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.json").write_text(text)
    (folder / "aa7.json").write_bytes(b"\xff\xfe\x00")
    (folder / "aa8.json").mkdir()
    before = {p: p.read_bytes() for p in store.glob("records/*/*.json") if p.is_file()}
    runs = read_runs(store)
    assert (runs.done, runs.failed, runs.newer) == (2, 1, 1)
    assert [Path(path).stem for path, _ in runs.damaged] == [
        "aa1",
        "aa3",
        "aa4",
        "aa5",
        "aa6",
        "aa7",
    ]
    assert {p: p.read_bytes() for p in before} == before
    assert read_runs(store).damaged == runs.damaged


def test_hostile_names_are_made_harmless(tmp_path: Path) -> None:
    runs = read_runs(put(tmp_path / "s", record(HOSTILE + "\ud800")))
    [name] = runs.axes["defense"]
    assert "\x1b" not in name
    assert "\u202e" not in name


def test_only_what_changed_is_read_again(store: Path) -> None:
    assert read_runs(store).fresh == 3
    assert read_runs(store).fresh == 0
    assert read_runs(store).done == 2
    put(store, record("nad"))
    runs = read_runs(store)
    assert (runs.fresh, runs.done) == (1, 3)
    changed = record("clp", acc=0.5)
    put(store, changed)
    runs = read_runs(store)
    assert runs.sql("SELECT \"after.acc\" FROM runs WHERE defense = 'clp'") == [(0.5,)]


def test_a_removed_record_is_forgotten(store: Path) -> None:
    assert read_runs(store).done == 2
    one = record("clp")
    (store / "records" / one["key"][:2] / f"{one['key']}.json").unlink()
    assert read_runs(store).done == 1
    assert read_runs(store).fresh == 0


def test_a_record_replaced_within_the_clocks_resolution_is_seen(tmp_path: Path) -> None:
    one, other = record("ft", acc=0.9), record("ft", acc=0.8)
    store = put(tmp_path / "s", one)
    path = store / "records" / one["key"][:2] / f"{one['key']}.json"
    there = path.stat()
    read_runs(store)
    put(store, other)
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert path.stat().st_size == there.st_size
    assert read_runs(store).sql('SELECT "after.acc" FROM runs') == [(0.8,)]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "bit":
        middle = len(content) // 3
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "old":
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"excise.runs": b"0"}), path)
    elif how == "types":
        table = pq.read_table(path)
        kept = table.schema.metadata
        pq.write_table(table.drop_columns(["der"]).replace_schema_metadata(kept), path)
    else:
        path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"no"}[how])


@pytest.mark.parametrize("how", ["half", "empty", "text", "bit", "old", "types"])
def test_a_damaged_cache_is_made_anew(store: Path, how: str) -> None:
    good = read_table(store).table
    damage(store / CACHE, how)
    listing = read_table(store)
    assert listing.table.equals(good)
    assert listing.fresh in (0, 3)  # a flipped bit may lie where nothing is stored
    assert read_table(store).fresh == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_to_is_read(store: Path) -> None:
    store.chmod(0o500)
    try:
        assert read_runs(store).done == 2
    finally:
        store.chmod(0o700)


def test_a_cache_that_cannot_be_written_is_done_without(store: Path) -> None:
    (store / "cache").write_text("in the way")
    listing = read_table(store)
    assert not listing.cached
    assert listing.table.num_rows == 3


def test_a_new_axis_meets_an_old_cache(store: Path) -> None:
    read_runs(store)
    put(store, record({"name": "rnp", "rate": 0.5}))
    runs = read_runs(store)
    assert runs.axes["defense.rate"] == ("0.5",)
    assert runs.done == 3


def test_two_processes_read_at_once(store: Path) -> None:
    put(store, *(record("ft", seed=seed) for seed in range(1, 60)))
    code = (
        "import sys, pathlib, excise.leaderboard as l\n"
        "print([l.read_runs(pathlib.Path(sys.argv[1])).done for _ in range(5)])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [one.communicate(timeout=120)[0].decode().strip() for one in both] == [str([61] * 5)] * 2
    assert not list(store.glob("cache/.*"))


def test_a_run_done_again_counts_once(tmp_path: Path) -> None:
    old = record("ft", acc=0.7, created="2026-01-01T00:00:00+00:00") | {"key": "aa" * 12}
    new = record("ft", acc=0.8, created="2026-02-01T00:00:00+00:00") | {"key": "bb" * 12}
    bad = failed("ft") | {"key": "cc" * 12, "created": "2026-03-01T00:00:00+00:00"}
    runs = read_runs(put(tmp_path / "s", old, new, bad))
    assert (runs.done, runs.failed, runs.replaced) == (1, 0, 2)
    assert runs.sql('SELECT "after.acc" FROM runs') == [(0.8,)]


def test_a_folder_of_repairs_is_read_without_a_cache(tmp_path: Path) -> None:
    spec = {
        "source": "cifar10", "spc": 10, "seed": 1, "defense": {"name": "ft", "epochs": 3},
        "model": {"arch": "net", "attack": {"name": "badnets"}, "victim_seed": 2},
    }  # fmt: skip
    one = {k: v for k, v in record().items() if k not in ("key", "status", "run")}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "record.json").write_text(json.dumps(one | {"spec": spec}))
    (tmp_path / "out" / "card.json").write_text("{}")
    (tmp_path / "other.json").write_text(json.dumps(one | {"spec": spec | {"seed": 3}}))
    runs = read_runs(tmp_path)
    assert runs.done == 2
    assert runs.damaged == ()
    assert runs.axes["seed"] == ("1", "3")
    assert runs.axes["victim_seed"] == ("2",)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("what", ["missing", "file", "newer", "other"])
def test_what_is_no_store_is_refused(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_text("")
    elif what != "missing":
        place.mkdir()
        said = {"newer": '{"kind": "excise store", "version": 9}', "other": "[]"}[what]
        (place / "store.json").write_text(said)
    with pytest.raises(DataError, match="store"):
        read_runs(place)


def test_the_cache_goes_with_the_store(store: Path, tmp_path: Path) -> None:
    read_runs(store)
    shutil.copytree(store, tmp_path / "copy", copy_function=shutil.copy2)
    assert read_runs(tmp_path / "copy").fresh == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file's name is Unicode")
def test_a_records_name_may_be_no_unicode(tmp_path: Path, store: Path) -> None:
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / os.fsdecode(b"\xff.json")).write_text(json.dumps(repair_of()))
    runs = read_runs(tmp_path / "loose")
    assert runs.done == 1
    assert runs.table.column("path").to_pylist() == ["\\xff.json"]
    stray = record("anp", key=os.fsdecode(b"\xff"))
    (store / "records" / "aa").mkdir(exist_ok=True)
    (store / "records" / "aa" / os.fsdecode(b"\xff.json")).write_text(json.dumps(stray))
    for _ in range(2):  # with and without a cache
        runs = read_runs(store)
        assert (runs.done, len(runs.damaged)) == (2, 1)


def test_a_setting_may_be_called_anything(tmp_path: Path) -> None:
    names = ("row", "rowid", "runs", "select", "count", "value", "index")
    put(tmp_path / "s", record(run={"defense": "x", **dict.fromkeys(names, 3)}))
    runs = read_runs(tmp_path / "s").where([f"{name}=3" for name in names])
    assert set(runs.axes) == {"defense", *names}
    assert runs.done == 1
