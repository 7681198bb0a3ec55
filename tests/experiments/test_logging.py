"""Figures go to TensorBoard and MLflow as they come, and nothing there can hurt the work."""

import sys
import threading
import time

import pytest
from tests.experiments.conftest import contents

from excise.cli import main
from excise.errors import SpecError
from excise.experiments.logging import Log, figures_of, flat, open_log

RECORD = {
    "after": {"acc": {"value": 0.9}, "asr": {"value": 0.1}, "ra": {"value": None}},
    "comparison": {"der": {"value": 0.8}},
    "seconds": {"total": 3.5, "repair": 1.0},
}


class Kept:
    """A backend that keeps what it is given."""

    def __init__(self):
        self.runs, self.steps, self.closed = [], [], 0

    def finished(self, run, params, figures):
        self.runs.append((run, dict(params), dict(figures)))

    def step(self, run, figures, step):
        self.steps.append((run, dict(figures), step))

    def close(self):
        self.closed += 1


class Failing(Kept):
    """A backend whose server is gone."""

    def finished(self, run, params, figures):
        self.runs.append(run)
        raise ConnectionError("no\nroute to host")

    step = finished


def test_what_is_logged_of_a_run():
    assert figures_of(RECORD) == {"acc": 0.9, "asr": 0.1, "der": 0.8, "seconds": 3.5}
    assert figures_of({"measured": {"acc": {"value": 0.5}, "asr": None}, "seconds": 2}) == {
        "acc": 0.5, "seconds": 2.0,
    }  # fmt: skip
    spec = {"attack": {"name": "badnets", "inner": {"x": 1.5}}, "spc": None, "twin": True}
    assert flat(spec) == {
        "attack.name": "badnets", "attack.inner.x": 1.5, "spc": "None", "twin": True,
    }  # fmt: skip


def test_rounds_and_runs_reach_the_backend_in_order():
    kept, said = Kept(), []
    with Log(kept, said.append) as log:
        log.round("v", {"stage": "fit", "epoch": 1, "epochs": 2, "loss": 0.7, "seconds": 1.0})
        log.round("v", {"stage": "cross triggers", "accuracy": 0.5})  # no step: passed over
        log.round("v", {"stage": "surrogate", "epoch": 1, "loss": 0.2})
        log.round("v", {"stage": "fit", "round": 3})  # no figure
        log.finished("v", {"seed": 0}, RECORD)
    assert kept.steps == [("v", {"fit/loss": 0.7}, 1), ("v", {"surrogate/loss": 0.2}, 1)]
    assert kept.runs == [("v", {"seed": 0}, figures_of(RECORD))]
    assert (kept.closed, said) == (1, [])


def test_a_failing_backend_is_told_of_once_and_then_left():
    failing, said = Failing(), []
    with Log(failing, said.append) as log:
        for run in range(9):
            log.finished(str(run), {}, RECORD)
    assert len(failing.runs) == 3
    assert len(said) == 1
    assert "the work goes on" in said[0]
    assert "ConnectionError: no route to host" in said[0]


def test_a_record_that_cannot_be_read_is_no_failure_of_the_work():
    kept, said = Kept(), []
    with Log(kept, said.append) as log:
        log.finished("a", {}, None)
        log.finished("b", {}, RECORD)
    assert [run for run, *_ in kept.runs] == ["b"]
    assert len(said) == 1


def test_a_backend_that_hangs_neither_slows_nor_keeps_the_work():
    hold, said = threading.Event(), []

    class Hanging(Kept):
        def finished(self, run, params, figures):
            hold.wait(60)

    log = Log(Hanging(), said.append)
    start = time.monotonic()
    for _ in range(100):
        log.finished("a", {}, RECORD)
    log.close(seconds=0.2)
    assert time.monotonic() - start < 10
    assert "does not answer" in said[0]
    hold.set()


@pytest.mark.parametrize("word", ["tensorboard", "tensorboard:", "wandb:x", "x", ":x"])
def test_other_words_are_refused(word):
    with pytest.raises(SpecError, match="expected --log tensorboard:DIR or --log mlflow:URI"):
        open_log(word, print)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_names_its_extra(kind, monkeypatch):
    for name in ("mlflow", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpecError, match=rf"pip install 'excise\[{kind}\]'"):
        open_log(f"{kind}:place", print)


def read_events(folder):
    """Return the scalars and the hyperparameters of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    raw = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    started = plugin_data_pb2.HParamsPluginData.FromString(raw).session_start_info
    return scalars, dict(started.hparams.items())


def test_tensorboard_for_real(tmp_path):
    pytest.importorskip("tensorboard")
    said = []
    with open_log(f"tensorboard:{tmp_path / 'logs'}", said.append) as log:
        log.round("a · run/../x", {"stage": "fit", "epoch": 1, "loss": 0.75})
        log.round("a · run/../x", {"stage": "fit", "epoch": 2, "loss": 0.5})
        log.finished("a · run/../x", {"attack": {"name": "badnets"}, "seed": 3}, RECORD)
        log.round("never finished", {"stage": "fit", "epoch": 1, "loss": 1.0})
    assert said == []
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == [
        "a_run_.._x", "never_finished",
    ]  # fmt: skip
    scalars, params = read_events(tmp_path / "logs" / "a_run_.._x")
    assert scalars["fit/loss"] == [(1, 0.75), (2, 0.5)]
    assert scalars["der"][0][1] == pytest.approx(0.8)
    assert params["attack.name"].string_value == "badnets"
    assert params["seed"].number_value == 3


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("in the way")
    said = []
    with open_log(f"tensorboard:{tmp_path / 'file'}", said.append) as log:
        log.finished("a", {}, RECORD)
    assert len(said) == 1


def test_mlflow_for_real(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    # Newer versions want a database, for which the small package lacks the library.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place, said = f"file://{tmp_path}/runs", []
    spec = {f"field{i}": i for i in range(150)} | {"attack": {"name": "x" * 900}}
    with open_log(f"mlflow:{place}", said.append) as log:
        log.round("a", {"stage": "fit", "epoch": 1, "loss": 0.75})
        log.round("a", {"stage": "cross triggers", "epoch": 2, "loss": float("nan")})
        log.finished("a", spec, RECORD)
        log.finished("b", {"seed": 1}, RECORD)
        log.round("c", {"stage": "fit", "epoch": 1, "loss": 0.75})
    assert said == []
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("excise")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "a": "FINISHED", "b": "FINISHED", "c": "KILLED",
    }  # fmt: skip
    assert runs["b"].data.params == {"seed": "1"}
    assert runs["b"].data.metrics == figures_of(RECORD)
    assert len(runs["a"].data.params) == 151
    assert len(runs["a"].data.params["attack.name"]) == 500
    assert runs["a"].data.metrics["fit/loss"] == 0.75


class Client:
    """As much of MLflow's client as is used, on a dictionary; for machines without MLflow."""

    places = {}  # noqa: RUF012  # one store for all clients, as a server is

    def __init__(self, tracking_uri):
        self.runs = self.places.setdefault(tracking_uri, {})

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        assert name == "excise"
        return "7"

    def create_run(self, experiment_id, run_name):
        assert experiment_id == "7"
        self.runs[run_name] = {"params": {}, "metrics": [], "status": "RUNNING"}
        info = type("Info", (), {"run_id": run_name})
        return type("Run", (), {"info": info})

    def log_batch(self, run_id, params):
        assert len(params) <= 100
        self.runs[run_id]["params"] |= {param[0]: param[1] for param in params}

    def log_metric(self, run_id, key, value, step=None):
        self.runs[run_id]["metrics"].append((key, value, step))

    def set_terminated(self, run_id, status="FINISHED"):
        self.runs[run_id]["status"] = status


def test_mlflow_on_a_stub(monkeypatch):
    stub = type(sys)("mlflow")
    stub.MlflowClient = Client
    entities = type(sys)("mlflow.entities")
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    with open_log("mlflow:https://host:5000/x", print) as log:
        log.round("a", {"stage": "fit", "epoch": 4, "loss": 0.75})
        log.finished("a", {"attack": {"name": "badnets"}, "seed": 3}, RECORD)
    run = Client.places["https://host:5000/x"]["a"]
    assert run["params"] == {"attack.name": "badnets", "seed": "3"}
    assert ("fit/loss", 0.75, 4) in run["metrics"]
    assert ("acc", 0.9, None) in run["metrics"]
    assert run["status"] == "FINISHED"


# --- the commands ---------------------------------------------------------------------------------


def test_a_sweep_logs_each_run_once(grid_file, tmp_path):
    pytest.importorskip("tensorboard")
    store, logs = tmp_path / "store", tmp_path / "logs"
    ask = ["sweep", str(grid_file), "--store", str(store), "--engine", "inline"]
    assert main([*ask, "--log", f"tensorboard:{logs}"]) == 0
    folders = sorted(logs.iterdir())
    assert len(folders) == 4
    for folder in folders:
        scalars, params = read_events(folder)
        assert {"acc", "asr", "ra", "der", "seconds"} <= set(scalars)
        assert params["attack.name"].string_value == "badnets"
    # Started again there is nothing to do, and nothing to log.
    assert main([*ask, "--log", f"tensorboard:{tmp_path / 'again'}"]) == 0
    assert not (tmp_path / "again").exists()


def test_a_sweep_with_a_broken_log_is_a_sweep_without_one(grid_file, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("in the way")
    ask = ["sweep", str(grid_file), "--engine", "inline"]
    assert (
        main([*ask, "--store", str(tmp_path / "a"), "--log", f"tensorboard:{tmp_path}/file"]) == 0
    )
    assert capsys.readouterr().err.count("logging failed; the work goes on") == 1
    assert main([*ask, "--store", str(tmp_path / "b")]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_plant_logs_its_epochs(tmp_path):
    pytest.importorskip("tensorboard")
    ask = ["plant", "--data", "digits", "--model", "excise:preactresnet18,width=2", "--size", "2",
           "--recipe.epochs", "2", "--out", str(tmp_path / "v")]  # fmt: skip
    assert main([*ask, "--log", "nothing:here"]) == 2
    assert not (tmp_path / "v").exists()
    assert main([*ask, "--log", f"tensorboard:{tmp_path / 'logs'}"]) == 0
    scalars, params = read_events(tmp_path / "logs" / "v")
    assert [step for step, _ in scalars["fit/loss"]] == [1, 2]
    assert {"acc", "asr", "ra", "seconds"} <= set(scalars)
    assert params["recipe.epochs"].number_value == 2
