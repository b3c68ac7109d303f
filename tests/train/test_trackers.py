"""Trackers get what `metrics.jsonl` gets, and whatever happens to them the run goes on."""

from __future__ import annotations

import sys
import threading
import time
import types

import pytest

from lsm_jax.config import Config, with_changes
from lsm_jax.errors import UserError
from lsm_jax.train import trackers
from lsm_jax.train.metrics import MetricsLog, read_metrics
from lsm_jax.train.trackers import check_trackers, open_trackers


def configured(*names):
    return with_changes(Config(), {"train.trackers": names, "data.paths": ("/home/someone/data/cohort",)})


class Stub(types.ModuleType):
    """A tracker's library as `trackio` has it; `log` does what a test says."""

    def __init__(self, log=lambda metrics, step: None):
        super().__init__("trackio")
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # so that it counts as installed
        self.logged, self.config, self.finished = [], None, threading.Event()
        self._log = log

    def init(self, project, name, config, **settings):
        self.config, self.name = config, name

    def log(self, metrics, step):
        self._log(metrics, step)
        self.logged.append((step, metrics))

    def finish(self):
        self.finished.set()


@pytest.fixture
def said():
    return []


def log_with(stub, tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", stub)
    report = lambda event, sentence, **_: said.append(sentence)  # noqa: E731
    return MetricsLog(tmp_path, -1, report, False, open_trackers(configured("trackio"), tmp_path, report))


def test_a_tracker_gets_every_record_and_no_path_of_this_machine(tmp_path, said, monkeypatch):
    stub = Stub()
    log = log_with(stub, tmp_path, said, monkeypatch)
    log.write(1, {"loss": 2.0, "time": {"step": 0.5}})
    log.write(2, {"loss": 1.0})
    log.close()
    assert stub.logged == [(1, {"loss": 2.0, "time/step": 0.5}), (2, {"loss": 1.0})]
    assert stub.finished.is_set()
    assert not said
    assert stub.config["data"] == "cohort"
    assert "/home" not in str(stub.config)
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_run_is_the_same_run(tmp_path, said, monkeypatch):
    names = []
    for _ in range(2):
        stub = Stub()
        log_with(stub, tmp_path, said, monkeypatch).close()
        names.append(stub.name)
    assert names[0] == names[1]


def test_a_tracker_that_fails_is_given_up_with_one_sentence(tmp_path, said, monkeypatch):
    def fails(metrics, step):
        raise ConnectionError("no route to host")

    log = log_with(Stub(fails), tmp_path, said, monkeypatch)
    for step in range(5):
        log.write(step, {"loss": 1.0})
        time.sleep(0.01)
    log.close()
    assert said == [
        "trackio is given up (ConnectionError: no route to host); the run goes on. metrics.jsonl has the same numbers."
    ]
    assert len(read_metrics(tmp_path)) == 5


def test_a_tracker_that_hangs_delays_no_step_and_ends_with_the_run(tmp_path, said, monkeypatch):
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "_WAITING", 3)
    hanging = threading.Event()
    log = log_with(Stub(lambda *_: hanging.wait()), tmp_path, said, monkeypatch)
    for step in range(10):
        log.write(step, {"loss": 1.0})
    log.close()
    hanging.set()
    assert len(said) == 1
    assert "trackio is given up (it is 3 records behind)" in said[0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wandbb", r"there is no tracker 'wandbb'\. Did you mean 'wandb'"),
        ("mlflow", r"mlflow is not installed\. Install it: pip install mlflow"),
    ],
)
def test_a_tracker_that_is_not_there_is_a_sentence(monkeypatch, name, sentence):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        check_trackers((name,))
