"""The Ray engine on a real cluster of several nodes, one of which is killed in the middle."""

import errno
from dataclasses import replace

import pytest
from tests.experiments.conftest import TINY, contents

from excise.errors import SpecError
from excise.experiments.grid import read_grid
from excise.experiments.store import Store
from excise.experiments.sweep import plan_sweep, run_sweep
from excise.experiments.tasks import Task

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'excise[ray]'")

# Ray's own threads and sockets outlive it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_costs_nothing(cluster, grid_file, tmp_path):
    from excise.experiments.engines.local import Inline
    from excise.experiments.engines.ray import OnRay

    nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    store = Store(tmp_path / "store")
    plan = plan_sweep(read_grid(grid_file), store)
    lost = []

    def lose_a_node(event):
        if event.kind == "done" and not lost:
            cluster.remove_node(nodes[0], allow_graceful=False)
            lost.append(event.task.key)

    engine = OnRay(address=cluster.address)
    assert engine.workers == 2
    assert run_sweep(plan, store, engine, lose_a_node) == (4, 0)
    assert lost
    undisturbed = Store(tmp_path / "undisturbed")
    run_sweep(plan_sweep(read_grid(grid_file), undisturbed), undisturbed, Inline(), print)
    assert contents(store.root) == contents(undisturbed.root)

    # Nodes that do not see the store plant in a place of their own; a failed run is a record.
    grid_file.write_text(TINY.replace("[0, 1]", "[2]"))
    plan = plan_sweep(read_grid(grid_file), store)
    # A plan refuses more images than there are; a node whose data changed since meets them.
    tasks = [
        replace(task, spec={**task.spec, "spc": 90}) if task.kind == "run" else task
        for task in plan.tasks
    ]
    plan = replace(plan, tasks=tuple(tasks))
    scratch = OnRay(address=cluster.address, scratch=tmp_path / "scratch")
    assert run_sweep(plan, store, scratch, print) == (0, 2)
    assert len(list((tmp_path / "scratch" / "victims").iterdir())) == 2
    failed = [record for record in store.records() if record["status"] == "failed"]
    assert len(failed) == 2
    assert "DataError" in failed[0]["error"]


def do(task, *needs):
    import torch

    from excise.experiments.engines.ray import _do

    return _do(task, "cpu", "/nowhere", [], torch.get_num_threads(), *needs)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "stopped"), (errno.EROFS, "stopped"), (None, "failed")]
)
def test_a_nodes_full_disk_is_told_and_stops_what_needs_the_task(monkeypatch, number, kind):
    def fails(*arguments, **options):
        raise OSError(number, "no") if number else RuntimeError("no")

    monkeypatch.setattr("excise.experiments.engines.ray.Store", fails)
    told = do(Task("twin", "a", {}))
    assert told[0] == kind
    assert do(Task("run", "b", {}, ("a",)), told) == (kind, told[1], "")


def test_a_nodes_full_disk_stops_the_sweep(cluster, grid_file, tmp_path, monkeypatch):
    from excise.experiments.engines.ray import OnRay

    def full(task, *options):  # nested, so that Ray carries its code to the node
        return "stopped", "OSError: [Errno 28] No space left on device", ""

    cluster.add_node(num_cpus=1, object_store_memory=10**8)
    monkeypatch.setattr("excise.experiments.engines.ray._do", full)
    store = Store(tmp_path / "store")
    plan = plan_sweep(read_grid(grid_file), store)
    with pytest.raises(OSError, match="No space left on device"):
        run_sweep(plan, store, OnRay(address=cluster.address), print)
    assert store.keys() == set()


def test_runs_whose_twin_is_lost_every_time_are_still_to_do(
    cluster, grid_file, tmp_path, monkeypatch
):
    from excise.experiments.engines.ray import OnRay

    plan = plan_sweep(read_grid(grid_file), Store(tmp_path / "store"))
    doomed = plan.tasks[0].key
    killed = next(
        task.key for task in plan.tasks if task.kind == "run" and doomed not in task.after
    )

    def dies(task, *options):  # nested, so that Ray carries its code to the node
        import os

        if task.key in (doomed, killed):
            os._exit(1)
        return "failed", "ValueError: no", ""

    cluster.add_node(num_cpus=1, object_store_memory=10**8)
    monkeypatch.setattr("excise.experiments.engines.ray._do", dies)
    monkeypatch.setattr("excise.experiments.engines.ray.RETRIES", 1)
    ended = {}
    store = Store(tmp_path / "store")

    def end(event):
        if event.kind != "started":
            ended[event.task.key] = event

    assert run_sweep(plan, store, OnRay(address=cluster.address), end) == (0, 2)
    for task in plan.tasks:
        lost = task.key == doomed or (task.kind == "run" and doomed in task.after)
        assert ended[task.key].kind == ("lost" if lost else "failed")
        assert (store.get(task.key) is not None) == (task.kind == "run" and not lost)


def test_a_cluster_that_is_not_there(tmp_path):
    from excise.experiments.engines.ray import OnRay

    with pytest.raises(SpecError, match="the address of a running Ray cluster"):
        list(OnRay(address="127.0.0.1:1").run([], tmp_path, ()))
