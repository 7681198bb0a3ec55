"""The planted network: the attack took, it is trained once, and nobody can spoil it for others."""

import threading
import time

import pytest

from excise.testing import planted_digits, shared_folder
from excise.testing.planted import once


def test_the_attack_took(planted):
    measured = planted.measure(planted.model)
    assert measured.acc.value > 0.9
    assert measured.asr.value > 0.9
    assert planted.backdoor.rule.target != 0
    assert not any(module.training for module in planted.model.modules())


def test_a_test_gets_a_copy_of_its_own(planted, tmp_path_factory):
    copy = planted.network()
    copy.body.linear.weight.data.zero_()
    assert planted.model.body.linear.weight.any()
    assert planted_digits(shared_folder(tmp_path_factory)) is planted


def test_the_defender_has_images_the_victim_never_saw(planted):
    assert planted.data.train.counts() == [9] * 10
    assert planted.data.validation.counts() == [1] * 10
    assert planted.plenty.train.counts() == [45] * 10
    assert planted.plenty.validation.counts() == [5] * 10


def slow_make(path):
    time.sleep(0.05)
    path.with_name(f"made-{time.monotonic_ns()}").touch()
    path.touch()


@pytest.mark.fast
def test_of_many_threads_one_makes_it(tmp_path):
    threads = [threading.Thread(target=once, args=(tmp_path / "x", slow_make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name.split("-")[0] for p in tmp_path.iterdir()) == ["made", "x"]


@pytest.mark.fast
def test_who_fails_leaves_the_turn_to_the_next(tmp_path):
    def fail(path):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        once(tmp_path / "x", fail)
    assert once(tmp_path / "x", slow_make).exists()


@pytest.mark.fast
def test_who_was_killed_is_not_waited_for_forever(tmp_path):
    (tmp_path / "x.lock").mkdir()
    assert once(tmp_path / "x", slow_make, patience=0.1).exists()


@pytest.mark.fast
def test_workers_of_one_session_share_a_folder(tmp_path_factory, monkeypatch):
    base = tmp_path_factory.getbasetemp()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    assert shared_folder(tmp_path_factory) == base
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert shared_folder(tmp_path_factory) == base.parent
