"""The loop: what it leaves behind, in which order, and that an interrupted run is the uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import small_training
from small_training import small_config

from lsm_jax import objectives
from lsm_jax.cli.main import main
from lsm_jax.config import from_json
from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import open_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.train import loop, timing
from lsm_jax.train.checkpoints import Checkpoints, saved_steps
from lsm_jax.train.loop import train
from lsm_jax.train.mesh import make_mesh
from lsm_jax.train.metrics import MetricsLog, MetricsRecorder, ProgressReporter, read_metrics
from lsm_jax.train.processes import PreemptionHandler
from lsm_jax.train.run import load_run
from lsm_jax.train.state import make_program
from lsm_jax.train.timing import BUCKETS, Clock
from lsm_jax.train.workdir import CHECKPOINTS, read_trained_on

_TIMING = {"time", "windows_per_second", "mfu", "input_wait", "goodput"}


def learnt(workdir: Path) -> list[dict[str, Any]]:
    """The records without what depends on the clock."""
    return [{key: value for key, value in record.items() if key not in _TIMING} for record in read_metrics(workdir)]


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters and metrics agree in every bit."""
    assert learnt(one) == learnt(other)
    first, second = load_run(one), load_run(other)
    assert first.step == second.step
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.fixture(scope="module")
def whole_run(half_hours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(small_config(half_hours), workdir) == 12
    return workdir


def test_a_run_leaves_what_the_design_promises(half_hours: Path, whole_run: Path) -> None:
    text = (whole_run / "config.json").read_text()
    assert from_json(text, "config.json") == small_config(half_hours)
    records = read_metrics(whole_run)
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 13))
    assert [record["step"] for record in records if "validation_loss" in record] == [0, 6, 12]
    assert list((whole_run / "tensorboard").glob("events*"))
    run = load_run(whole_run)
    assert run.step == 12
    assert run.spec.channels == small_training.CHANNELS


def test_learning_lowers_the_validation_loss(half_hours: Path, tmp_path: Path) -> None:
    train(small_config(half_hours, "train.duration=60 steps", "evaluate.every=60 steps", "train.ema_decay=0"), tmp_path)
    losses = [record["validation_loss"] for record in read_metrics(tmp_path) if "validation_loss" in record]
    assert losses[-1] < 0.8 * losses[0]


def test_buckets_sum_to_wall_time_over_restarts(half_hours: Path, tmp_path: Path) -> None:
    begin = time.perf_counter()
    train(small_config(half_hours), tmp_path)
    train(small_config(half_hours, "train.duration=16 steps"), tmp_path)
    wall = time.perf_counter() - begin
    seconds = [record["time"] for record in read_metrics(tmp_path) if "time" in record][-1]
    assert set(seconds) == set(BUCKETS)
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) <= wall


@pytest.mark.parametrize("stop_at", [3, 8])
def test_stopped_by_sigterm_and_resumed_is_bit_identical(
    half_hours: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config = small_config(half_hours)
    taken = 0
    original = Loader.__next__

    def interrupting(self: Loader) -> Any:
        nonlocal taken
        batch = original(self)
        # Validation loaders are interrupted too, which must change nothing.
        taken += 1
        if self.position == stop_at and taken > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "__next__", interrupting)
        assert train(config, tmp_path) == stop_at
    assert train(config, tmp_path) == 12
    assert_same_run(whole_run, tmp_path)


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, small_training.__file__, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_killed_and_resumed_is_bit_identical(half_hours: Path, whole_run: Path, tmp_path: Path) -> None:
    process = start([str(half_hours), str(tmp_path)])
    while process.poll() is None and not saved_steps(tmp_path / CHECKPOINTS):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    # Whatever the kill left half done: a record cut short, a checkpoint begun.
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 11, "lo')
    (tmp_path / CHECKPOINTS / "11.orbax-checkpoint-tmp-1").mkdir()
    assert train(small_config(half_hours), tmp_path) == 12
    assert_same_run(whole_run, tmp_path)
    assert not list((tmp_path / CHECKPOINTS).glob("*tmp*"))


def test_work_thrown_away_by_a_crash_is_counted_as_lost(half_hours: Path, tmp_path: Path) -> None:
    config = small_config(half_hours, "train.duration=6 steps")
    train(config, tmp_path)
    last = read_metrics(tmp_path)[-2]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        record = last | {"step": 9, "time": last["time"] | {"step": last["time"]["step"] + 100.0}}
        stream.write(json.dumps(record) + "\n")
    train(small_config(half_hours), tmp_path)
    seconds = [record["time"] for record in read_metrics(tmp_path) if "time" in record][-1]
    assert 99.0 < seconds["lost"] <= 100.0


def test_work_lost_before_the_first_checkpoint_or_twice_is_not_forgotten(half_hours: Path, tmp_path: Path) -> None:
    record = {"step": 3, "loss": 1.0, "time": dict.fromkeys(BUCKETS, 0.0) | {"step": 100.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    # A start that dies before its first record has removed that one all the same.
    MetricsLog(tmp_path, -1).close()
    assert not read_metrics(tmp_path)
    train(small_config(half_hours, "train.duration=1 steps"), tmp_path)
    seconds = [record["time"] for record in read_metrics(tmp_path) if "time" in record][-1]
    assert seconds["lost"] == 100.0


def test_evaluation_can_be_switched_off(half_hours: Path, tmp_path: Path) -> None:
    train(small_config(half_hours, "evaluate.batches=0", "train.duration=2 steps"), tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("key", ["train.batch_size", "train.grad_accum_steps", "rows.windows_per_row"])
def test_counts_of_nothing_are_refused(half_hours: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=0 must be at least 1".replace(".", r"\.")):
        train(small_config(half_hours, f"{key}=0"), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_lost_terminal_ask_to_stop(number: signal.Signals) -> None:
    outside = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with PreemptionHandler() as stop:
            assert not stop.should_stop(0)
            os.kill(os.getpid(), number)
            assert stop.should_stop(1)
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outside)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreemptionHandler() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.should_stop(0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_steps_skipped_before_a_restart_are_not_counted_again(half_hours: Path, tmp_path: Path) -> None:
    config = small_config(half_hours, "train.max_nonfinite_steps=1")
    plan, log = loop.make_schedule(config, open_datasets(config.data)), MetricsLog(tmp_path, -1)
    with MetricsRecorder(config, Clock(), plan, log, ProgressReporter(1, enabled=False), skipped=3.0) as records:
        records.write_late(4, {"skipped": np.float32(3), "loss": np.float32(1)})
        records.write_pending()
        records.write_late(5, {"skipped": np.float32(4), "loss": np.float32(1)})
        with pytest.raises(RunError, match="not been finite"):
            records.write_pending()


def test_validation_fills_rows_as_evaluation_takes_them(half_hours: Path) -> None:
    """A micro-batch takes every other window, an evaluation neighbours."""
    config = small_config(half_hours, "rows.windows_per_row=2", "train.grad_accum_steps=2", "data.weights=1,")
    plan = loop.make_schedule(config, open_datasets(config.data))
    program = make_program(
        config,
        objectives.build(config, data_spec(config.data, open_datasets(config.data))),
        make_mesh(config.mesh),
        plan,
    )
    with contextlib.closing(
        loop.DeviceBatches(
            config,
            open_datasets(config.data),
            data_spec(config.data, open_datasets(config.data)),
            program,
            plan,
            0,
            None,
        )
    ) as data:
        (batch,) = data.validation()
        rows = np.asarray(batch["window_id"]).reshape(-1, 2)
        assert (np.diff(rows, axis=1) == 1).all()
        training = np.asarray(data.next_training()["window_id"])
        assert (np.diff(np.stack([training[part::2].reshape(-1, 2) for part in range(2)]), axis=-1) == 1).all()


def test_a_run_writes_down_whom_it_was_trained_on(half_hours: Path, whole_run: Path) -> None:
    people = open_dataset(half_hours).source("train").participants
    assert read_trained_on(whole_run) == {"half_hours": sorted({*people})}
    (whole_run / "trained_on.json").write_text("[1]")
    with pytest.raises(UserError, match=r"trained_on\.json is damaged"):
        read_trained_on(whole_run)
    (whole_run / "trained_on.json").unlink()
    assert read_trained_on(whole_run) == {}


def test_order_is_evaluate_save_then_fetch(half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def note(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any, **keywords: Any) -> Any:
            events.append(label)
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, noted)

    note(loop, "validate", "evaluate")
    note(Checkpoints, "save", "save")
    note(loop.DeviceBatches, "next_training", "fetch")
    note(MetricsLog, "write", "write")
    changes = ("train.duration=2 steps", "evaluate.every=1 steps", "checkpoint.every=1 steps")
    train(small_config(half_hours, *changes), tmp_path)
    step = ["fetch", "write", "evaluate", "write", "save"]
    assert events == ["evaluate", "write", *step, *step]


def test_metrics_are_written_one_step_late(half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    original = timing.TimedJit.__call__
    monkeypatch.setattr(timing.TimedJit, "__call__", lambda *args: events.append("step") or original(*args))
    write = MetricsLog.write
    monkeypatch.setattr(
        MetricsLog, "write", lambda self, step, metrics: events.append(f"write {step}") or write(self, step, metrics)
    )
    train(small_config(half_hours, "train.duration=3 steps", "evaluate.every=0 steps"), tmp_path)
    assert events == ["step", "step", "write 1", "step", "write 2", "write 3"]


def test_another_configuration_is_refused_by_key(half_hours: Path, whole_run: Path) -> None:
    before = (whole_run / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"optimizer\.learning_rate was 0\.001, is 0\.5; seed was 0, is 1"):
        train(small_config(half_hours, "seed=1", "optimizer.learning_rate=0.5"), whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_the_command(half_hours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", f"--config={small_training.__file__}", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data.paths={half_hours}", "--config.train.duration=2 steps"]
    assert main(command) == 0
    assert "step 2: finished" in capsys.readouterr().err
    assert main([*command, "--config.seed=4"]) == 2
    assert "seed was 0, is 4" in capsys.readouterr().err
    assert main([*command, "--config.sede=4"]) == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err
    assert main([*command, "--config.evaluate.every=1 steps", "--config.train.duration=3 steps"]) == 0


def test_changed_data_is_refused(half_hours: Path, tmp_path: Path) -> None:
    train(small_config(half_hours, "train.duration=1 steps"), tmp_path)
    spec = json.loads((tmp_path / "spec.json").read_text())
    spec["channels"]["steps"]["mean"] += 1
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="normalisation"):
        train(small_config(half_hours), tmp_path)


def test_a_gradient_that_is_never_finite_ends_the_run(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = small_training.Regression.loss

    def broken(self: Any, *arguments: Any) -> Any:
        loss, metrics = original(self, *arguments)
        return loss * np.nan, metrics

    monkeypatch.setattr(small_training.Regression, "loss", broken)
    with pytest.raises(RunError, match="3 steps in a row"):
        train(small_config(half_hours, "train.max_nonfinite_steps=3"), tmp_path)
    assert read_metrics(tmp_path)[-1]["loss"] is None


def test_profile_writes_a_trace(half_hours: Path, tmp_path: Path) -> None:
    train(small_config(half_hours, "train.profile_steps=2,3", "train.duration=4 steps"), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_nested_stretches_are_counted_once() -> None:
    now = iter([0.0, 1.0, 2.0, 5.0, 6.0, 10.0])
    clock = Clock(lambda: next(now))
    with clock.measure("step"), clock.measure("compile"):
        pass
    seconds = clock.seconds()
    assert (seconds["compile"], seconds["step"], seconds["other"]) == (3.0, 2.0, 5.0)
