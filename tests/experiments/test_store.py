"""The store keeps what was finished, whatever happens to its files and to those who write them."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from excise.errors import DataError
from excise.experiments import lease as lease_module
from excise.experiments.lease import Lease
from excise.experiments.store import DamagedRecordWarning, Store
from excise.files import whole_file

pytestmark = pytest.mark.fast

KEY = "ab" + "0" * 22


def record(key=KEY, status="done", **more):
    return {
        "version": 1, "key": key, "status": status, "run": {}, "seconds": {"total": 1.0}, **more,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_what_is_put_is_there(store):
    assert store.get(KEY) is None
    store.put(record(x=[1, "ü"]))
    assert store.get(KEY) == record(x=[1, "ü"])
    assert list(store.records()) == [record(x=[1, "ü"])]
    assert store.keys() == {KEY}
    assert Store(store.root).get(KEY) == record(x=[1, "ü"])


def test_a_failure_never_replaces_a_finished_run(store):
    store.put(record())
    store.put(record(status="failed", error="x"))
    assert store.get(KEY) == record()
    other = "cd" + KEY[2:]
    store.put(record(other, "failed"))
    store.put(record(other))
    assert store.get(other) == record(other)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"version": 1, "ke', b"\xff\xfe", b"[]", b"{}", b'{"version": "x"}', b"null",
     json.dumps(record("ff" + KEY[2:])).encode(), json.dumps(record(status="?")).encode(),
     json.dumps(record(seconds=None)).encode(), json.dumps(record(seconds={})).encode(),
     json.dumps(record(seconds={"total": float("nan")})).encode(),
     json.dumps(record(run=[])).encode(), json.dumps(record(KEY, "failed", run=None)).encode(),
     b'{"version": 1, "key": "%s", "status": "failed"}' % KEY.encode(),
     b'{"version": 1e999}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_record_is_moved_aside_and_its_run_is_not_done(store, content):
    path = store.put(record())
    path.write_bytes(content)
    with pytest.warns(DamagedRecordWarning, match="its run counts as not done"):
        assert store.get(KEY) is None
    assert path.with_name(f"{KEY}.json.damaged").read_bytes() == content
    store.put(record())
    assert store.get(KEY) == record()


def test_a_damaged_record_may_be_moved_by_two_sweeps_at_once(store, monkeypatch):
    path, move = store.put(record()), Path.replace
    path.write_bytes(b"")

    def moved_meanwhile(self, target):
        move(self, target)
        return move(self, target)

    monkeypatch.setattr(Path, "replace", moved_meanwhile)
    with pytest.warns(DamagedRecordWarning):
        assert store.get(KEY) is None
    assert path.with_name(f"{KEY}.json.damaged").read_bytes() == b""


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_newer_record_is_left_alone_and_counts_as_done(store, status):
    path = store.put(record())
    path.write_text(json.dumps(record() | {"version": 2, "shape": "unknown"}))
    before = path.read_bytes()
    found = store.get(KEY)
    assert found is not None
    assert found["status"] == "newer"
    assert path.read_bytes() == before
    store.put(record(status=status))
    assert path.read_bytes() == before


def test_other_files_are_no_records(store):
    store.put(record())
    for name in (".abc.json.part", "note.txt", f"{KEY}.json.damaged"):
        (store.path(KEY).parent / name).write_text("x")
    assert store.keys() == {KEY}
    assert len(list(store.records())) == 1


def test_a_store_killed_before_it_was_described_is_an_empty_place(tmp_path, monkeypatch):
    def killed(path, content):
        with whole_file(path) as part:
            part.write_text("half")
            left = part.with_name(part.name + ".left")
            part.rename(left)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("excise.experiments.store.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]
    assert any((tmp_path / "leases").iterdir()), "what was half-written is still there"
    assert Store(tmp_path).keys() == set()
    assert Store(tmp_path).keys() == set()


def test_a_directory_of_something_else_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="a store, or an empty place for one"):
        Store(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(DataError, match="holds something else"):
        Store(file)


@pytest.mark.parametrize("make", [True, False])
def test_a_store_that_another_start_describes_meanwhile_is_no_something_else(
    tmp_path, monkeypatch, make
):
    root, look = tmp_path / "store", Path.iterdir
    root.mkdir()

    def described_meanwhile(self):
        if self == root and not (root / "store.json").exists():
            monkeypatch.undo()
            Store(root).put(record())
        return look(self)

    monkeypatch.setattr(Path, "iterdir", described_meanwhile)
    assert Store(root, make=make).keys() == {KEY}


@pytest.mark.parametrize(
    "said", ["", "{}", '{"kind": "excise store", "version": 9}', '{"kind": "x", "version": 1}']
)
def test_a_store_of_another_kind_or_time_is_refused(tmp_path, said):
    (tmp_path / "store.json").write_text(said)
    with pytest.raises(DataError, match="a store this version of Excise can read"):
        Store(tmp_path)


def test_a_place_that_cannot_be_written_to_is_found_at_once(tmp_path, monkeypatch):
    Store(tmp_path)

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        Store(tmp_path)
    assert [p.name for p in (tmp_path / "leases").iterdir()] == []


def test_a_full_disk_leaves_what_was_there(store, monkeypatch):
    store.put(record())

    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            store.put(record(x=1))
    assert store.get(KEY) == record()
    assert [p.name for p in store.path(KEY).parent.iterdir()] == [f"{KEY}.json"]


def test_victims_are_found_in_the_store_and_on_its_shelves(tmp_path):
    shelf = tmp_path / "shelf" / "deep" / "one"
    shelf.mkdir(parents=True)
    (shelf / "card.json").write_text(json.dumps({"key": KEY}))
    broken = tmp_path / "shelf" / "broken"
    broken.mkdir()
    (broken / "card.json").write_text("{")
    store = Store(tmp_path / "store", (tmp_path / "shelf",))
    assert store.victim(KEY) == shelf
    assert store.victim("cd") is None
    store.victim_place(KEY).mkdir(parents=True)
    assert store.victim(KEY) == shelf  # an empty directory is no victim
    own = store.victim_place(KEY) / "card.json"
    for damaged in (b"", b'{"key"', b"[]", b"\xff", b"[" * 100_000):
        own.write_bytes(damaged)
        assert store.victim(KEY) == shelf
        assert list(store.cards()) == []
    own.write_text("{}")
    assert store.victim(KEY) == store.victim_place(KEY)
    assert list(store.cards()) == [{}]
    own.unlink()
    assert store.victim(KEY) == shelf  # somebody removed it since


def test_what_lies_half_written_on_a_shelf_is_no_victim(tmp_path):
    shelf = tmp_path / ".shelf"  # its own name is nobody's business
    for place in (f".{KEY}.x.part", f"deep/.{KEY}.x.old/{KEY}"):
        (shelf / place).mkdir(parents=True)
        (shelf / place / "card.json").write_text(json.dumps({"key": KEY}))
    assert Store(tmp_path / "store", (shelf,)).victim(KEY) is None
    (shelf / "whole").mkdir()
    (shelf / "whole" / "card.json").write_text(json.dumps({"key": KEY}))
    assert Store(tmp_path / "store", (shelf,)).victim(KEY) == shelf / "whole"


def test_a_card_that_the_disk_does_not_give_is_not_taken_for_damaged(store, monkeypatch):
    def fails(self, *arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(OSError, match="Input/output"):
        store.victim(KEY)


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "leases" / "a"
    first = Lease.claim(path)
    assert first is not None
    with first:
        assert Lease.claim(path) is None
        other = Lease.claim(tmp_path / "leases" / "b")
        assert other is not None
    assert not path.exists()
    again = Lease.claim(path)
    assert again is not None


def test_a_holder_whose_process_is_gone_is_dead(tmp_path):
    path = tmp_path / "a"
    child = os.fork()
    if child == 0:
        Lease.claim(path)
        os._exit(0)
    os.waitpid(child, 0)
    assert path.exists()
    assert Lease.claim(path) is not None


def test_a_holder_on_another_machine_is_dead_when_it_is_silent(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text(json.dumps({"owner": "x", "host": "elsewhere", "pid": 1}))
    assert Lease.claim(path) is None
    old = time.time() - lease_module.STALE - 1
    os.utime(path, (old, old))
    assert Lease.claim(path) is not None


def test_a_lease_that_is_just_being_written_is_held(tmp_path):
    path = tmp_path / "a"
    path.write_text("")
    assert Lease.claim(path) is None
    old = time.time() - lease_module.STALE - 1
    os.utime(path, (old, old))
    assert Lease.claim(path) is not None


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT", 0.05)
    path = tmp_path / "a"
    lease = Lease.claim(path)
    assert lease is not None
    with lease:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_who_lost_a_lease_does_not_take_the_new_holders(tmp_path):
    path = tmp_path / "a"
    lease = Lease.claim(path)
    assert lease is not None
    with lease:
        path.write_text(json.dumps({"owner": "another", "host": "elsewhere", "pid": 1}))
    assert json.loads(path.read_text())["owner"] == "another"
