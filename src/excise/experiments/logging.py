"""Figures to TensorBoard or MLflow as they come, for those who watch experiments there.

::

    --log tensorboard:DIR     event files under DIR, one folder a run
    --log mlflow:URI          a tracking server or database: https://…, sqlite:///runs.db

The store and its records are what counts; a log is a copy. So nothing here may stop or slow the
work: a log is written by a thread of its own, and one that fails is told of once and then left.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from excise.errors import SpecError
from excise.types import Row

__all__ = ["Backend", "Log", "check_log", "figures_of", "flat", "open_log"]

Params = Mapping[str, str | int | float | bool]
Figures = Mapping[str, float]

#: Failures in a row after which no more is tried: a dead server would be asked for every figure.
_PATIENCE = 3
#: Seconds that the end of the work waits for what is still to be logged.
_LAST_WAIT = 30.0
_EXPERIMENT = "excise"


class Backend(Protocol):
    """Where figures go."""

    def finished(self, run: str, params: Params, figures: Figures) -> None:
        """Take the settings and the last figures of a run; nothing more comes for it."""
        ...

    def step(self, run: str, figures: Figures, step: int) -> None:
        """Take figures of a run that goes on, such as the loss of an epoch."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class Log:
    """Hands figures to a backend on a thread of its own; nothing that it does can fail the work.

    Args:
        backend: where they go; None logs nothing.
        warn: told once, in a sentence, when the backend fails.
    """

    def __init__(self, backend: Backend | None, warn: Callable[[str], None]) -> None:
        self._backend, self._warn = backend, warn
        self._failures = 0
        self._warned = False
        self._waiting: queue.SimpleQueue[Callable[[Backend], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if backend is not None:
            # A daemon: a server that hangs must not keep a finished sweep from ending.
            self._thread = threading.Thread(target=self._work, args=(backend,), daemon=True)
            self._thread.start()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def finished(self, run: str, spec: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Log a finished run: its spec, and the figures of its record (or of a victim's card)."""
        self._put(lambda backend: backend.finished(run, flat(spec), figures_of(record)))

    def round(self, run: str, row: Row) -> None:
        """Log the loss and the accuracy of an epoch; a row without any is passed over."""
        step = row.get("epoch", row.get("round"))
        stage = str(row.get("stage", "fit"))
        figures = {
            f"{stage}/{name}": float(value)
            for name in ("loss", "accuracy", "validation_loss")
            if isinstance(value := row.get(name), int | float)
        }
        if isinstance(step, int) and figures:
            self._put(lambda backend: backend.step(run, figures, step))

    def close(self, seconds: float = _LAST_WAIT) -> None:
        """Wait, but not for ever, until everything is logged."""
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._tell(f"the log does not answer for {seconds:.0f} s; its last figures may be lost")
        self._thread = None

    def _put(self, task: Callable[[Backend], None]) -> None:
        if self._thread is not None:
            self._waiting.put(task)

    def _work(self, backend: Backend) -> None:
        while (task := self._waiting.get()) is not None:
            if self._failures < _PATIENCE:
                self._attempt(backend, task)
        self._attempt(backend, lambda backend: backend.close())

    def _attempt(self, backend: Backend, task: Callable[[Backend], None]) -> None:
        try:
            task(backend)
        except Exception as error:  # of somebody else's library, for any reason
            self._failures += 1
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self._tell(f"logging failed; the work goes on and its records are kept ({words})")
        else:
            self._failures = 0

    def _tell(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(text)


def open_log(where: str | None, warn: Callable[[str], None]) -> Log:
    """Return the log that a person named: ``tensorboard:DIR`` or ``mlflow:URI``; None logs nothing.

    Raises:
        SpecError: another word, or a library that is not installed.
    """
    if where is None:
        return Log(None, warn)
    kind, place = check_log(where)
    try:
        return Log(_BACKENDS[kind](place), warn)
    except ImportError as error:  # of something the library needs itself
        raise _not_installed(kind, f"{type(error).__name__}: {error}") from error


def check_log(where: str) -> tuple[str, str]:
    """Return the kind of log and its place, and make nothing there.

    Raises:
        SpecError: another word, or a library that is not installed.
    """
    kind, _, place = where.partition(":")
    if kind not in _BACKENDS or not place:
        raise SpecError(
            "--log tensorboard:DIR or --log mlflow:URI",
            got=repr(where),
            remedy="Write for example --log tensorboard:logs or --log mlflow:sqlite:///runs.db.",
        )
    # The kinds are called as their packages are.
    if sys.modules.get(kind) is None and importlib.util.find_spec(kind) is None:
        raise _not_installed(kind, "none")
    return kind, place


def _not_installed(kind: str, got: str) -> SpecError:
    return SpecError(
        f"{kind} to be installed for --log", got=got, remedy=f"pip install 'excise[{kind}]'"
    )


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a run's record, or of a victim's card, that have a value."""
    after = record.get("after") or record.get("measured") or {}
    found: dict[str, Any] = {name: (after.get(name) or {}).get("value") for name in _RATES}
    found["der"] = ((record.get("comparison") or {}).get("der") or {}).get("value")
    seconds = record.get("seconds")
    found["seconds"] = seconds.get("total") if isinstance(seconds, Mapping) else seconds
    return {name: float(value) for name, value in found.items() if value is not None}


_RATES = ("acc", "asr", "ra")


def flat(spec: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return a nested spec as one level: ``{"attack": {"name": "x"}}`` as ``attack.name``."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            found[key] = value if isinstance(value, str | int | float | bool) else str(value)
    return found


class TensorBoard:
    """Event files under a directory, one folder a run; hyperparameters in the HPARAMS tab."""

    def __init__(self, place: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make: Callable[..., Any] = SummaryWriter
        self._root = Path(place)
        self._open: dict[str, Any] = {}

    def finished(self, run: str, params: Params, figures: Figures) -> None:
        """Write hyperparameters and figures into the run's folder, whole."""
        writer = self._writer(run)
        writer.add_hparams(dict(params), dict(figures), run_name=".")
        writer.close()
        del self._open[run]

    def step(self, run: str, figures: Figures, step: int) -> None:
        """Write figures of a step."""
        writer = self._writer(run)
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """Close runs that did not finish."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def _writer(self, run: str) -> Any:
        if run not in self._open:
            folder = re.sub(r"[^\w.,=-]+", "_", run).strip("._") or "run"
            self._open[run] = self._make(log_dir=str(self._root / folder))
        return self._open[run]


class MLflow:
    """A run in MLflow for every run here, in the experiment ``excise``.

    Through its client, so that nothing global changes in a process that uses MLflow itself.
    """

    def __init__(self, place: str) -> None:
        from mlflow import MlflowClient

        self._connect: Callable[[], Any] = lambda: MlflowClient(tracking_uri=place)
        self._client: Any = None
        self._experiment = ""
        self._open: dict[str, str] = {}

    def finished(self, run: str, params: Params, figures: Figures) -> None:
        """Log parameters and figures, and end the run."""
        from mlflow.entities import Param

        run_id = self._run(run)
        # A server takes at most 100 parameters at once, each of at most 500 characters.
        listed = [Param(_key(name), str(value)[:500]) for name, value in params.items()]
        for start in range(0, len(listed), 100):
            self._client.log_batch(run_id, params=listed[start : start + 100])
        for name, value in figures.items():
            self._client.log_metric(run_id, _key(name), value)
        self._client.set_terminated(run_id)
        del self._open[run]

    def step(self, run: str, figures: Figures, step: int) -> None:
        """Log figures of a step."""
        run_id = self._run(run)
        for name, value in figures.items():
            if math.isfinite(value):
                self._client.log_metric(run_id, _key(name), value, step=step)

    def close(self) -> None:
        """End runs that did not finish."""
        for run_id in self._open.values():
            self._client.set_terminated(run_id, status="KILLED")
        self._open.clear()

    def _run(self, run: str) -> str:
        if self._client is None:
            client = self._connect()
            there = client.get_experiment_by_name(_EXPERIMENT)
            self._experiment = (
                there.experiment_id if there else client.create_experiment(_EXPERIMENT)
            )
            self._client = client
        if run not in self._open:
            made = self._client.create_run(self._experiment, run_name=run)
            self._open[run] = made.info.run_id
        return self._open[run]


def _key(name: str) -> str:
    """Return a name with the characters alone that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name)


_BACKENDS: Mapping[str, Callable[[str], Backend]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
