"""Files and directories appear whole or not at all, whatever happens while they are written."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from excise.files import whole_directory, whole_file, write_bytes, write_json, write_text

pytestmark = pytest.mark.fast

FAILURES = [OSError("disk full"), KeyboardInterrupt(), SystemExit(2), GeneratorExit()]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def fail_in(make, path, error, content=b"half"):
    with make(path) as part:
        (part / "a" if part.is_dir() else part).write_bytes(content)
        raise error


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize("make", [whole_file, whole_directory])
def test_a_failure_leaves_nothing(tmp_path, make, error):
    with pytest.raises(type(error)):
        fail_in(make, tmp_path / "x", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_failure_leaves_the_older_file(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(type(error)):
        fail_in(whole_file, tmp_path / "x", error)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_failure_leaves_the_older_directory(tmp_path, error):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    with pytest.raises(type(error)):
        fail_in(whole_directory, tmp_path / "x", error)
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["old"]


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "deep" / "er" / "x"
    with whole_file(path) as part:
        part.write_bytes(b"new")
        assert not path.exists()
        assert part.parent == path.parent  # the same file system: moving is one step
        assert part.name.startswith(".")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["x"]


def test_the_older_file_is_there_until_the_end_of_the_block(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with whole_file(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_directory_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "deep" / "x"
    with whole_directory(path) as part:
        (part / "a").touch()
        (part / "sub").mkdir()
        assert not path.exists()
    assert names(path) == ["a", "sub"]
    assert names(path.parent) == ["x"]


def test_a_replaced_directory_keeps_nothing_of_the_older_one(tmp_path):
    path = tmp_path / "x"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "old").touch()
    with whole_directory(path) as part:
        (part / "new").touch()
        assert names(path) == ["sub"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["x"]


def test_a_directory_that_cannot_be_moved_there_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.mkdir()
    (path / "old").touch()
    replace = Path.replace

    def fails_for_the_new_one(self, target):
        if self.suffix == ".part":
            raise PermissionError("no")
        return replace(self, target)

    def write():
        with whole_directory(path) as part:
            (part / "new").touch()

    monkeypatch.setattr(Path, "replace", fails_for_the_new_one)
    with pytest.raises(PermissionError):
        write()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["x"]


def test_where_a_directory_lies_no_file_is_put(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"):
        write_text(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "whole", "x")
    assert stat.S_IMODE((tmp_path / "whole").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    (tmp_path / "dir").mkdir()
    with whole_directory(tmp_path / "whole-dir"):
        pass
    expected = stat.S_IMODE((tmp_path / "dir").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "whole-dir").stat().st_mode) == expected


def test_the_umask_is_put_back(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "x")
        assert os.umask(0o027) == 0o027
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_readers_see_the_old_or_the_new_and_nothing_between(tmp_path):
    path, sizes, stop = tmp_path / "x", set(), threading.Event()
    write_bytes(path, b"a" * 100_000)

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            sizes.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh":
        write_bytes(path, bytes([letter]) * 100_000)
    stop.set()
    reader.join()
    assert sizes == {(100_000, 1)}


def test_what_the_writers_write(tmp_path):
    write_bytes(tmp_path / "b", b"\x00\xff")
    write_text(tmp_path / "t", "γ, β\n")
    write_json(tmp_path / "j", {"β": [1, 2.5, None, True]})
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_bytes() == "γ, β\n".encode()
    text = (tmp_path / "j").read_text(encoding="utf-8")
    assert json.loads(text) == {"β": [1, 2.5, None, True]}
    assert "β" in text
    assert text.endswith("}\n")


def test_what_json_has_no_word_for_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "j", {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_json(tmp_path / "j", {"loss": object()})
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [whole_file, whole_directory])
def test_a_full_disk_is_one_whoever_says_so(tmp_path, make):
    hidden = RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match=r"No space left on device: .*/x") as caught:
        fail_in(make, tmp_path / "x", hidden)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is hidden
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError, match="something else"):
        fail_in(make, tmp_path / "x", RuntimeError("something else"))


def test_what_stands_in_a_directory_can_be_read_by_whom_the_umask_lets(tmp_path):
    with whole_directory(tmp_path / "x") as part:
        (part / "deep").mkdir(mode=0o700)
        (part / "deep" / "a").touch(mode=0o600)
    umask = os.umask(0)
    os.umask(umask)
    deep = tmp_path / "x" / "deep"
    assert stat.S_IMODE((deep / "a").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(deep.stat().st_mode) == 0o777 & ~umask


def test_a_directorys_files_are_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    synced, path = set(), tmp_path / "x"

    def fsync(number):
        assert not path.exists()
        synced.add(os.fstat(number).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_directory(path) as part:
        (part / "deep").mkdir()
        for name in ("a", "deep/b"):
            (part / name).write_text(name)
    assert synced == {(path / name).stat().st_ino for name in ("a", "deep/b")}
