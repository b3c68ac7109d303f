"""Steps that are skipped because of what was in their batch, and what a run does after too many of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_training import short_config

from lsm_jax.data.spec import open_datasets
from lsm_jax.errors import RunError
from lsm_jax.events import read_events
from lsm_jax.train.batches import DeviceBatches
from lsm_jax.train.loop import make_schedule, train
from lsm_jax.train.metrics import MetricsLog, MetricsRecorder, read_metrics
from lsm_jax.train.run import load_run, whole_steps
from lsm_jax.train.terminal import ProgressReporter
from lsm_jax.train.timing import Clock


def test_a_gradient_that_is_never_finite_ends_the_run(half_hours: Path, tmp_path: Path) -> None:
    # The first step makes parameters so large that every later loss overflows.
    changes = ("optimizer.learning_rate=1e38", "optimizer.warmup=0 steps", "train.max_bad_steps=3")
    with pytest.raises(RunError, match="3 steps in a row had to be skipped"):
        train(short_config(half_hours, *changes), tmp_path)
    assert [record["loss"] for record in read_metrics(tmp_path) if "loss" in record][-1] is None


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float, batches: range) -> None:
    """Multiplies every value of these training batches."""
    next_training, taken = DeviceBatches.next_training, itertools.count()

    def spoilt(self: DeviceBatches) -> Any:
        batch, rows = next_training(self)
        if next(taken) not in batches:
            return batch, rows
        return {**batch, "values": batch["values"] * factor}, {**rows, "values": rows["values"] * factor}

    monkeypatch.setattr(DeviceBatches, "next_training", spoilt)


@pytest.mark.parametrize("factor", [1e30, 1e6])
def test_a_spoilt_batch_is_skipped_and_said(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    config = short_config(half_hours, "train.duration=7 steps", "checkpoint.every=1 steps", "model.asinh_inputs=False")
    spoil(monkeypatch, factor, range(6, 7))
    assert train(config, tmp_path) == 7
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "bad_step"]
    assert (event["step"], sorted(event["suspects"])) == (7, sorted(event["windows"]))
    assert "step 7: finished; 1 step was skipped" in capsys.readouterr().err
    before, after = (load_run(tmp_path, step).params for step in (6, 7))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_run_goes_back_and_on_with_later_data(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_config(
        half_hours,
        "train.max_bad_steps=2",
        "train.on_bad_steps=rollback",
        "train.duration=8 steps",
        "train.ema_decay=0",
    )
    spoil(monkeypatch, np.nan, range(5, 8))
    assert train(config, tmp_path) == 8
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "rollback"]
    # Two bad steps, 6 and 7, are noticed while step 8 runs.
    assert (event["step"], event["position"]) == (4, 8)
    # 4 steps more than batches: those of steps 5 to 8 were taken twice.
    assert read_metrics(tmp_path)[-1]["step"] == 8
    steps = [record["step"] for record in read_metrics(tmp_path) if "loss" in record]
    assert steps == list(range(1, 9))
    assert load_run(tmp_path).step == 8


def test_going_back_in_vain_ends_the_run(half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = short_config(half_hours, "train.max_bad_steps=1", "train.on_bad_steps=rollback")
    spoil(monkeypatch, np.nan, range(5, 99))
    with pytest.raises(RunError, match="3 times since the last checkpoint"):
        train(config, tmp_path)


def test_no_checkpoint_is_saved_among_bad_steps(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("checkpoint.every=1 steps", "train.max_bad_steps=2", "train.on_bad_steps=rollback")
    spoil(monkeypatch, np.nan, range(5, 99))
    with pytest.raises(RunError, match="3 times since the last checkpoint"):
        train(short_config(half_hours, *changes), tmp_path)
    assert whole_steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_checkpoint_due_at_a_bad_step_is_saved_after_it(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, np.nan, [3])
    train(short_config(half_hours, "checkpoint.every=4 steps", "checkpoint.keep=9", "train.duration=7 steps"), tmp_path)
    assert whole_steps(tmp_path) == [5, 7]


def test_steps_skipped_before_a_restart_are_not_counted_again(half_hours: Path, tmp_path: Path) -> None:
    config, events = short_config(half_hours, "train.max_bad_steps=1"), []
    report = lambda event, sentence, **_: events.append((event, sentence))  # noqa: E731
    schedule, log = make_schedule(config, open_datasets(config.data)), MetricsLog(tmp_path, -1, report)
    reporter = ProgressReporter(1, enabled=False)
    rows = {"values": np.full((2, 1, 1), 1e30), "observed": np.array([[[True]], [[False]]]), "window_id": np.arange(2)}
    metrics = {"loss": np.float32(np.inf), "gradient_norm": np.float32(1), "typical_gradient_norm": np.float32(1)}
    with MetricsRecorder(config, Clock(), schedule, log, reporter, report, skipped=3) as recorder:
        recorder.write_late(4, metrics | {"skipped": np.float32(3)}, rows)
        recorder.write_pending()
        assert not recorder.must_act
        recorder.write_late(5, metrics | {"skipped": np.float32(4)}, rows)
        recorder.write_pending()
        assert recorder.must_act
    # The cell of window 1 is not recorded, so that its value says nothing.
    skipped = "step 5 was skipped: loss inf, gradient norm 1; impossible values in windows 0."
    assert events == [("bad_step", skipped)]
