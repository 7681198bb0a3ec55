"""A sweep does every run once, shares victims, records failures, and goes on after anything."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter

import pytest
import torch
from tests.experiments.conftest import TINY, contents

from excise.cli import main
from excise.experiments import tasks
from excise.experiments.engines.local import (
    RETRIES,
    Event,
    Inline,
    Local,
    Schedule,
    share_memory,
)
from excise.experiments.grid import read_grid
from excise.experiments.store import Store
from excise.experiments.sweep import plan_sweep, run_sweep
from excise.experiments.tasks import Task


def sweep(grid_file, root, engine=None, retry_failed=False):
    """Run a sweep; return its plan, what came of it, and its events."""
    store = Store(root)
    plan = plan_sweep(read_grid(grid_file), store, retry_failed=retry_failed)
    events = []
    outcome = run_sweep(plan, store, engine or Inline(), events.append)
    return plan, outcome, events


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store in which the tiny sweep is done; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY)
    plan, outcome, events = sweep(folder / "tiny.toml", folder / "store")
    assert outcome == (4, 0)
    return plan, events, folder / "store"


def test_victims_are_planted_once_and_before_their_runs(finished):
    plan, events, root = finished
    assert (plan.count("twin"), plan.count("victim"), plan.count("run")) == (2, 2, 4)
    done = [event.task.key for event in events if event.kind == "done"]
    assert len(done) == len(set(done)) == 8
    for event in events:
        if event.kind == "started":
            before = done[: done.index(event.task.key)]
            assert set(event.task.after) <= set(before)
    assert len(list((root / "victims").iterdir())) == 4


def test_a_record_says_all_there_is_to_say(finished):
    _, _, root = finished
    records = list(Store(root).records())
    assert len(records) == 4
    for record in records:
        assert record["version"] == 1
        assert record["status"] == "done"
        assert record["run"]["data"] == "digits"
        assert record["before"]["acc"]["n"] == record["after"]["acc"]["n"] > 0
        assert record["floor"] is not None
        assert {"revision", "torch", "device", "excise"} <= set(record["environment"])
        assert record["seconds"]["total"] > 0
        assert record["peak_memory_mib"] > 0
        assert isinstance(record["checks"], list)


def test_started_again_it_has_nothing_to_do(finished, grid_file):
    plan, outcome, _ = sweep(grid_file, finished[2])
    assert (plan.done, plan.tasks, outcome) == (4, (), (0, 0))


def test_the_same_sweep_gives_the_same_store(finished, grid_file, tmp_path):
    sweep(grid_file, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(finished[2])


def test_another_axis_shares_the_victims(finished, grid_file, tmp_path):
    grid_file.write_text(TINY.replace("spc = 2", "spc = 3"))
    store = Store(tmp_path / "store", (finished[2] / "victims",))
    plan = plan_sweep(read_grid(grid_file), store)
    assert (plan.count("twin"), plan.count("victim"), plan.count("run")) == (0, 0, 4)
    assert run_sweep(plan, store, Inline(), lambda event: None) == (4, 0)


def test_an_estimate_comes_from_what_was_done(finished, grid_file):
    grid_file.write_text(TINY.replace("[0, 1]", "[0, 1, 2]"))
    plan = plan_sweep(read_grid(grid_file), Store(finished[2]))
    assert (plan.done, plan.count("run"), plan.count("victim")) == (4, 2, 1)
    assert plan.seconds is not None
    assert plan.unjudged == 0


@pytest.mark.parametrize(
    "said",
    ["", '{"made": {', "[]", "{}", '{"made": null, "seconds": 1}', '{"made": [], "seconds": 1}',
     '{"made": {"arch": 1}, "seconds": null}', '{"made": {"arch": 1}, "seconds": 1e999}',
     '{"made": {"arch": 1, "recipe": 1}, "seconds": 1}', '{"made": {"arch": []}, "seconds": 1}'],
)  # fmt: skip
def test_what_says_nothing_of_its_time_is_no_part_of_an_estimate(
    finished, grid_file, tmp_path, said
):
    store = Store(shutil.copytree(finished[2], tmp_path / "store"))
    for number, card in enumerate((store.root / "victims").rglob("card.json")):
        card.write_text(said if number else card.read_text())
    for number, record in enumerate(store.records()):
        if number:
            store.put({**record, "run": {"spc": []}})
    plan = plan_sweep(read_grid(grid_file), store)
    assert (plan.done, plan.tasks, plan.seconds) == (4, (), None)
    grid_file.write_text(TINY.replace("[0, 1]", "[2]"))
    plan = plan_sweep(read_grid(grid_file), store)
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.unjudged == 2  # one of the two defenses, and the victim or its twin


def test_a_victim_with_a_damaged_card_is_planted_again(finished, grid_file, tmp_path):
    store = Store(shutil.copytree(finished[2], tmp_path / "store"))
    run = next(iter(read_grid(grid_file).runs))
    card = store.victim_place(run.victim_key()) / "card.json"
    card.write_text("")
    store.path(run.key).unlink()
    _, outcome, _ = sweep(grid_file, store.root)
    assert outcome == (1, 0)
    aside = store.root / "victims" / f"{run.victim_key()}.damaged"
    assert (aside / "card.json").read_text() == ""
    assert (aside / "model.safetensors").is_file()
    shutil.rmtree(aside)
    assert contents(store.root) == contents(finished[2])


def test_a_failed_run_is_a_record_and_stops_nobody(grid_file, tmp_path, monkeypatch):
    from excise.defenses import GradPrune

    def fails(self, *arguments, **options):
        raise RuntimeError("the filters are on strike")

    with monkeypatch.context() as patch:
        patch.setattr(GradPrune, "repair", fails)
        plan, outcome, _ = sweep(grid_file, tmp_path / "store")
    assert outcome == (2, 2)
    failed = [r for r in Store(tmp_path / "store").records() if r["status"] == "failed"]
    assert len(failed) == 2
    assert failed[0]["error"] == "RuntimeError: the filters are on strike"
    assert "Traceback" in failed[0]["traceback"]
    assert "in fails" in failed[0]["traceback"]
    assert 'File "excise/experiments/tasks.py"' in failed[0]["traceback"]
    assert 'File "/' not in failed[0]["traceback"]
    # Tried again only when asked.
    plan, outcome, _ = sweep(grid_file, tmp_path / "store")
    assert (plan.done, plan.failed, outcome) == (2, 2, (0, 0))
    plan, outcome, _ = sweep(grid_file, tmp_path / "store", retry_failed=True)
    assert (plan.done, plan.failed, outcome) == (2, 0, (2, 0))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f'File "{torch.nn.__file__}", line 1', 'File "torch/nn/__init__.py", line 1'),
        (f'File "{json.__file__}"', 'File "json/__init__.py"'),
        (f'File "{tasks.__file__}"', 'File "excise/experiments/tasks.py"'),
        ("No such file: '/home/me/my data/x.png'", "No such file: 'x.png'"),
        ("got /data/a/b.txt, which it isn't", "got b.txt, which it isn't"),
        ("(/tmp/a) [/b] parquet:/c/d file:///e/f", "(a) [b] parquet:d file://f"),
        ("https://a.b/c/d and/or x / y a/b.py '/'", "https://a.b/c/d and/or x / y a/b.py '/'"),
    ],
)
def test_a_record_holds_no_path_of_this_machine(text, kept):
    record = tasks.failure(Task("run", "k", {}), f"E: {text}", f"Traceback\n  {text}")
    assert (record["error"], record["traceback"]) == (f"E: {kept}", f"Traceback\n  {kept}")
    line, trace = tasks.described_error(RuntimeError(text))
    assert line == f"RuntimeError: {text}"  # whom it is told knows the machine
    assert trace == f"RuntimeError: {kept}\n"


def test_a_victim_that_cannot_be_planted_fails_its_runs_alone(grid_file, tmp_path, monkeypatch):
    from excise.attacks import BadNets

    def fails(self, *arguments, **options):
        raise RuntimeError("no poison today")

    grid_file.write_text(
        TINY.replace('attack = { name = "badnets", size = 2 }', "").replace(
            "[axes]", '[axes]\nattack = ["badnets", "blended"]'
        )
    )
    monkeypatch.setattr(BadNets, "poison", fails)
    _, outcome, _ = sweep(grid_file, tmp_path / "store")
    assert outcome == (4, 4)
    for record in Store(tmp_path / "store").records():
        assert (record["status"] == "failed") == (record["run"]["attack"]["name"] == "badnets")
        if record["status"] == "failed":
            assert "no poison today" in record["error"]


def test_a_full_disk_stops_the_sweep_and_keeps_what_was_done(grid_file, tmp_path, monkeypatch):
    import errno

    real, left = Store.put, [2]

    def fills_up(self, record):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", fills_up)
        with pytest.raises(OSError, match="No space left"):
            sweep(grid_file, tmp_path / "store")
    plan, outcome, _ = sweep(grid_file, tmp_path / "store")
    assert (plan.done, outcome) == (2, (2, 0))


def test_workers_give_what_one_process_gives(finished, grid_file, tmp_path):
    _, outcome, _ = sweep(grid_file, tmp_path / "store", Local(2, cores=2))
    assert outcome == (4, 0)
    assert contents(tmp_path / "store") == contents(finished[2])


def killing(engine, chosen, times=1):
    """Return what kills the workers of the tasks that ``chosen`` says, and the keys it killed."""
    killed = Counter()

    def kill(event):
        key = event.task.key
        if event.kind == "started" and chosen(event.task) and killed[key] < times:
            worker = next(w for w in engine._crew if w.task and w.task.key == key)
            os.kill(worker.process.pid, signal.SIGKILL)
            killed[key] += 1

    return kill, killed


def test_a_worker_that_dies_costs_its_own_run_only(grid_file, tmp_path):
    store = Store(tmp_path / "store")
    plan = plan_sweep(read_grid(grid_file), store)
    engine = Local(2, cores=2)
    unlucky = next(task.key for task in plan.tasks if task.kind == "run")
    kill_one, killed = killing(engine, lambda task: task.key == unlucky)
    assert run_sweep(plan, store, engine, kill_one) == (3, 1)
    assert killed == {unlucky: 1}
    record = store.get(unlucky)
    assert record is not None
    assert record["error"] == "the worker died with signal SIGKILL (out of memory?)"
    _, outcome, _ = sweep(grid_file, tmp_path / "store", retry_failed=True)
    assert outcome == (1, 0)


def test_a_worker_that_dies_planting_costs_nothing(finished, grid_file, tmp_path):
    store = Store(tmp_path / "store")
    plan = plan_sweep(read_grid(grid_file), store)
    engine = Local(2, cores=2)
    kill, killed = killing(engine, lambda task: task.kind != "run")
    assert run_sweep(plan, store, engine, kill) == (4, 0)
    assert len(killed) == 4
    assert contents(store.root) == contents(finished[2])


def test_runs_whose_twin_is_lost_every_time_are_still_to_do(grid_file, tmp_path):
    store = Store(tmp_path / "store")
    plan = plan_sweep(read_grid(grid_file), store)
    engine = Local(2, cores=2)
    twin = plan.tasks[0].key
    kill, killed = killing(engine, lambda task: task.key == twin, times=99)
    assert run_sweep(plan, store, engine, kill) == (2, 0)
    assert killed == {twin: 1 + RETRIES}
    plan = plan_sweep(read_grid(grid_file), store)
    assert (plan.done, plan.failed, plan.count("run"), plan.count("twin")) == (2, 0, 2, 1)
    assert run_sweep(plan, store, Inline(), lambda event: None) == (2, 0)


def test_two_sweeps_on_one_store_share_the_work(finished, grid_file, tmp_path):
    outcomes, seen = [], []

    def one():
        _, outcome, events = sweep(grid_file, tmp_path / "store", Local(1, cores=1))
        outcomes.append(outcome)
        seen.extend(e.result["seconds"] for e in events if e.kind == "done")

    Store(tmp_path / "store")
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome[1] for outcome in outcomes) == 0
    assert contents(tmp_path / "store") == contents(finished[2])


@pytest.mark.parametrize("kind", ["failed", "lost"])
def test_tasks_wait_for_what_they_need_and_fall_with_it(kind):
    a, b, c = Task("twin", "a", {}), Task("victim", "b", {}, ("a",)), Task("run", "c", {})
    d = Task("run", "d", {}, ("c", "b"))
    schedule = Schedule([d, b, a, c])
    assert schedule.next() is a
    schedule.again(a)
    assert schedule.next() is a
    assert schedule.next() is c
    assert schedule.next() is None
    schedule.close(Event("done", c))
    schedule.close(Event(kind, a, "broken", "trace"))
    assert schedule.next() is b
    assert schedule.fall(b) == Event(kind, b, "broken", "")
    assert schedule.next() is None
    schedule.close(Event(kind, b, "broken", ""))
    assert schedule.next() is d
    assert schedule.fall(d) == Event(kind, d, "broken", "")
    assert schedule.fall(c) is None


@pytest.mark.parametrize(
    ("device", "sharing", "asked"),
    [("cuda", 4, [(0.25, 0)]), ("cuda:1", 2, [(0.5, 1)]), ("cuda", 1, []), ("cpu", 4, [])],
)
def test_workers_share_the_memory_of_a_gpu(monkeypatch, device, sharing, asked):
    given = []
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction",
        lambda part, number: given.append((part, number)),
    )
    share_memory(device, sharing)
    assert given == asked


# The command


def test_the_command_plans_runs_and_says_what_it_did(grid_file, tmp_path, capsys):
    store = tmp_path / "results"
    arguments = ["sweep", str(grid_file), "--store", str(store), "--engine", "inline"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 runs: 0 done, 0 failed before, 4 to do" in said
    assert "2 victims and 2 clean twins to plant first" in said
    assert "no estimate" in said
    assert not store.exists()  # it only looked
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "4 of 4 runs are done, 0 failed" in said.out
    assert "[4/4]" in said.err
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 4


def test_the_command_says_what_is_still_to_do(grid_file, tmp_path, capsys, monkeypatch):
    class Dies:
        def run(self, tasks, store, shelves):
            schedule = Schedule(tasks)
            while (task := schedule.next()) is not None:
                event = schedule.fall(task) or Event("lost", task, "the worker died")
                schedule.close(event)
                yield event

    monkeypatch.setattr("excise.commands.sweep._engine", lambda asked: Dies())
    arguments = ["sweep", str(grid_file), "--store", str(tmp_path / "s")]
    for _ in range(2):  # nothing is kept that the next start would skip
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert "4 runs: 0 done, 0 failed before, 4 to do" in said.err
        assert "lost: the worker died" in said.err
        assert "0 of 4 runs are done, 0 failed" in said.out
        assert "4 still to do" in said.out
    assert main([*arguments, "--json"]) == 1
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["done"], outcome["failed"], outcome["to_do"]) == (0, 0, 4)


def test_a_machine_that_tells_neither_cores_nor_memory_sweeps_too(
    grid_file, tmp_path, capsys, monkeypatch
):
    for told in ("sched_getaffinity", "sysconf"):  # macOS lacks the first, Windows both
        monkeypatch.delattr(os, told, raising=False)
    assert main(["sweep", str(grid_file), "--store", str(tmp_path / "s"), "--dry-run"]) == 0
    assert "4 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("badnets", "badnet"), "Did you mean 'badnets'"),
        (("digits", "digit"), "digits"),
        (("preactresnet18", "preactresnet81"), "preactresnet18"),
        (("size = 2", "size = 2, target = 11"), "a target from 0 to 9, got 11"),
        (("size = 2", "size = 2, poison_ratio = 2"), "poison_ratio"),
    ],
)
def test_what_does_not_exist_fails_before_anything_runs(grid_file, tmp_path, capsys, change, said):
    grid_file.write_text(grid_file.read_text().replace(*change))
    assert (
        main(["sweep", str(grid_file), "--store", str(tmp_path / "s"), "--engine", "inline"]) == 2
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s" / "victims").exists()


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (("spc = 2", "spc = 500"), [], "at least 500 images of every class"),
        (("", ""), ["--device", "meta"], "a device this machine has"),
        (("", ""), ["--device", "cuda:93"], "a device this machine has"),
        (("", ""), ["--log", "nothing:here"], "expected --log tensorboard:DIR or --log mlflow:URI"),
        (("", ""), ["--victims", "nowhere"], "expected a directory with bundles, got nowhere"),
    ],
)
def test_a_dry_run_finds_what_cannot_be_run(grid_file, tmp_path, capsys, change, flags, said):
    text = grid_file.read_text()
    assert change[0] in text
    grid_file.write_text(text.replace(*change))
    store = tmp_path / "s"
    assert main(["sweep", str(grid_file), "--store", str(store), "--dry-run", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not store.exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["sweep", str(tmp_path / "no.toml")]) == 2
    assert "no.toml" in capsys.readouterr().err


def test_interrupted_it_says_how_far_it_is(grid_file, tmp_path):
    import subprocess
    import sys

    store = tmp_path / "s"
    child = subprocess.Popen(
        [sys.executable, "-m", "excise", "sweep", str(grid_file), "--store", str(store),
         "--workers", "1"],
        stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    # A victim comes before its runs; after the first record the rest may be done in a moment.
    while not list((store / "victims").rglob("card.json")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "runs are done and kept. Start it again to go on." in said
    assert "Traceback" not in said
    assert main(["sweep", str(grid_file), "--store", str(store), "--engine", "inline"]) == 0
