"""What the machine has, also where the system does not tell as Linux does."""

from __future__ import annotations

import os

import pytest

from excise.machine import physical_memory, usable_cores


def test_cores_are_those_this_process_may_use() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert usable_cores() == len(os.sched_getaffinity(0))


def test_memory_is_what_the_system_tells() -> None:
    found = physical_memory()
    assert found is None or found > 2**28


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS, Windows
    assert usable_cores() == os.cpu_count()


def test_without_posix_memory_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert physical_memory() is None


def test_a_name_the_system_does_not_know_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert physical_memory() is None
