"""Experiment trackers: the metrics of a run also in Trackio, Weights & Biases or MLflow, where these are installed.

They repeat `metrics.jsonl`. Each works in a thread of its own, so that a slow or missing network delays no step. One
that fails is given up, and the run goes on. Lead host only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import netrc
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsm_jax.config import Config
from lsm_jax.config.files import flatten
from lsm_jax.errors import UserError, nearest
from lsm_jax.events import Report
from lsm_jax.train.workdir import METRICS, TENSORBOARD, replace_text

_PROJECT = "lsm_jax"
_IDS = "trackers.json"  # in the run folder: what a tracker calls the run, so that a resumed run is the same one
_WAITING = 1000  # records that a slow tracker may lag behind; later ones are left out
_CLOSE_SECONDS = 20.0  # that the end of a run waits for a tracker
_PARAMETERS = 100  # of one request to MLflow
_ID_LOCK = threading.Lock()  # several trackers write the file of ids
_PATHS = ("data.paths", "language.tokenizer", "model.encoder_from")

Metrics = Mapping[str, float]


class Session(NamedTuple):
    """A run in a tracker: how metrics of a step are added, and how it ends."""

    log: Callable[[int, Metrics], None]
    finish: Callable[[], None]


def check_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker that is unknown or not installed (`train.trackers`)."""
    known = (TENSORBOARD, *_TRACKERS)
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise UserError(f"train.trackers: there is no tracker {name!r}.{nearest(name, known)} Known: {listed}.")
        if name in _TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(f"train.trackers: {name} is not installed. Install it: pip install {name}")


def open_trackers(config: Config, workdir: Path, report: Report) -> list[Tracker]:
    """The trackers that a configuration names, TensorBoard apart."""
    return [Tracker(name, config, workdir, report) for name in config.train.trackers if name in _TRACKERS]


class Tracker:
    """Sends metrics to a tracker in the background, until it fails; then says so, once."""

    def __init__(self, name: str, config: Config, workdir: Path, report: Report) -> None:
        self._name, self._report = name, report
        self._queue: queue.Queue[tuple[int, Metrics] | None] = queue.Queue(_WAITING)
        self._gave_up = False
        described = {key: str(value) for key, value in flatten(config).items() if key not in _PATHS}
        described["data"] = ", ".join(Path(path).name for path in config.data.paths)  # names only, no paths
        self._thread = threading.Thread(
            target=self._work, args=(workdir, described), name=f"tracker {name}", daemon=True
        )
        self._thread.start()

    def write(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics of a step. Never waits."""
        if self._gave_up:
            return
        try:
            self._queue.put_nowait((step, dict(metrics)))
        except queue.Full:
            self._give_up(f"it is {_WAITING} records behind")

    def close(self) -> None:
        """Ends the run in the tracker, if it does so in time."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(0 if self._gave_up else _CLOSE_SECONDS)
        if self._thread.is_alive() and not self._gave_up:
            self._give_up(f"it took more than {_CLOSE_SECONDS:.0f} s to end")

    def _work(self, workdir: Path, described: dict[str, str]) -> None:
        try:
            session = _TRACKERS[self._name](workdir, described)
            while (entry := self._queue.get()) is not None:
                session.log(*entry)
            session.finish()
        # Libraries that talk to servers fail in every way, some by SystemExit, and none is worth a run.
        except BaseException as error:
            self._give_up(f"{type(error).__name__}: {str(error).strip() or 'no reason given'}")

    def _give_up(self, reason: str) -> None:
        if not self._gave_up:
            self._gave_up = True
            sentence = f"{self._name} is given up ({reason}); the run goes on. {METRICS} has the same numbers."
            self._report("tracker_failed", sentence)


def _wandb(workdir: Path, described: dict[str, str]) -> Session:
    """Weights & Biases; offline, in the run folder, where nobody has logged in (`wandb sync` uploads it later)."""
    import wandb

    online = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_MODE")) or _has_wandb_login()
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=workdir.name,
        id=_id(workdir, "wandb", lambda: uuid.uuid4().hex),
        dir=workdir,
        config=described,
        mode=None if online else "offline",
        resume="allow",
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,  # the command line, folders and the host's name
            x_disable_stats=True,  # what the machine does
        ),
    )
    # Steps that run again after a crash are lower than what was logged last, which W&B's own step does not allow.
    run.define_metric("*", step_metric="step")
    return Session(lambda step, metrics: run.log({"step": step, **metrics}), run.finish)


def _has_wandb_login() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mlflow(workdir: Path, described: dict[str, str]) -> Session:
    """MLflow, at MLFLOW_TRACKING_URI, or in the file `mlflow.db` of the run folder."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir.resolve() / 'mlflow.db'}")

    def begin() -> str:
        found = client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(_PROJECT)
        run = client.create_run(experiment, run_name=workdir.name).info.run_id
        parameters = [Param(key, value) for key, value in described.items()]
        for first in range(0, len(parameters), _PARAMETERS):
            client.log_batch(run, params=parameters[first : first + _PARAMETERS])
        return str(run)

    run = _id(workdir, "mlflow", begin)
    client.update_run(run, "RUNNING")

    def log(step: int, metrics: Metrics) -> None:
        now = int(1000 * time.time())
        client.log_batch(run, [Metric(name, value, now, step) for name, value in metrics.items()])

    return Session(log, lambda: client.set_terminated(run))


def _trackio(workdir: Path, described: dict[str, str]) -> Session:
    """Trackio, whose data stay on this machine unless its own settings name a Space or server."""
    import trackio

    name = f"{workdir.name}-{_id(workdir, 'trackio', lambda: uuid.uuid4().hex[:8])}"
    trackio.init(_PROJECT, name, config=described, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    return Session(lambda step, metrics: trackio.log(dict(metrics), step), trackio.finish)


_TRACKERS: Mapping[str, Callable[[Path, dict[str, str]], Session]] = {
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _id(workdir: Path, tracker: str, begin: Callable[[], str]) -> str:
    """What a tracker calls this run: as before, or what `begin` returns."""
    file = workdir / _IDS
    with _ID_LOCK:
        ids: Any = {}
        with contextlib.suppress(OSError, ValueError):
            ids = json.loads(file.read_text(encoding="utf-8"))
        ids = ids if isinstance(ids, dict) else {}
        if not isinstance(ids.get(tracker), str):
            ids[tracker] = begin()
            replace_text(file, json.dumps(ids))
        return str(ids[tracker])
