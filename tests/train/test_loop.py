"""The loop: what it leaves behind, in which order, and that an interrupted run equals an uninterrupted one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import short_training
from short_training import STEPS, program_and_batches, short_config

from lsm_jax.cli.main import main
from lsm_jax.config import from_json
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import Dataset, open_dataset
from lsm_jax.errors import Preempted, UserError
from lsm_jax.events import read_events
from lsm_jax.train.batches import DeviceBatches
from lsm_jax.train.checkpoints import Checkpoints, saved_steps
from lsm_jax.train.loop import make_schedule, train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.processes import PreemptionHandler
from lsm_jax.train.run import Run, load_run
from lsm_jax.train.timing import BUCKETS, Clock, LifeSigns
from lsm_jax.train.workdir import CHECKPOINTS, read_trained_on

TIMING = {"time", "windows_per_second", "mfu", "input_wait", "goodput"}


def without_timing(workdir: Path) -> list[dict[str, Any]]:
    """The records without what depends on the machine."""
    return [{key: value for key, value in record.items() if key not in TIMING} for record in read_metrics(workdir)]


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics and parameters agree in every bit."""
    assert without_timing(one) == without_timing(other)
    first, second = load_run(one), load_run(other)
    assert first.step == second.step
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_a_run_leaves_what_the_design_promises(half_hours: Path, whole_run: Path) -> None:
    text = (whole_run / "config.json").read_text()
    assert from_json(text, "config.json") == short_config(half_hours)
    records = read_metrics(whole_run)
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if "validation_loss" in record] == [0, 4, 8, 12]
    assert list((whole_run / "tensorboard").glob("events*"))
    run = load_run(whole_run)
    assert run.step == STEPS
    assert run.spec.channels == short_training.CHANNELS


def test_the_validation_loss_falls(half_hours: Path, tmp_path: Path) -> None:
    changes = ["train.duration=60 steps", "evaluate.every=60 steps", "train.ema_decay=0", "checkpoint.every=60 steps"]
    train(short_config(half_hours, *changes, "optimizer.learning_rate=1e-2"), tmp_path)
    losses = [record["validation_loss"] for record in read_metrics(tmp_path) if "validation_loss" in record]
    assert losses[-1] < 0.8 * losses[0]


def test_checkpoints_hold_their_steps_data_position_and_what_was_evaluated(half_hours: Path, whole_run: Path) -> None:
    """Evaluation comes before saving, and saving before the next batch is fetched."""
    program, _ = program_and_batches(half_hours)
    config = short_config(half_hours)
    datasets = open_datasets(config.data)
    spec, schedule = data_spec(config.data, datasets), make_schedule(config, datasets)
    recorded = {record["step"]: record for record in read_metrics(whole_run) if "validation_loss" in record}
    content = Checkpoints(whole_run / CHECKPOINTS, 9, lambda *_, **__: None).restore_latest(program.shapes)
    assert content is not None and content.position == int(content.state.step) == STEPS
    with contextlib.closing(DeviceBatches(config, datasets, spec, program, schedule, None, 0)) as batches:
        (batch,) = batches.validation()
    for step in (4, 8, 12):
        params = jax.device_put(load_run(whole_run, step).params)
        assert float(program.evaluate(params, batch)["loss"]) == pytest.approx(recorded[step]["validation_loss"])


def test_each_record_is_of_its_own_step(half_hours: Path, whole_run: Path) -> None:
    """Metrics are fetched while the next step runs; they must not be mistaken for its own."""
    program, _ = program_and_batches(half_hours)
    for record in read_metrics(whole_run):
        if "loss" in record:
            assert record["learning_rate"] == pytest.approx(float(program.learning_rate(np.int32(record["step"] - 1))))


def test_buckets_sum_to_wall_time_over_restarts(half_hours: Path, tmp_path: Path) -> None:
    first, second = (short_config(half_hours, f"train.duration={steps} steps") for steps in (4, 6))
    begin = time.perf_counter()
    train(first, tmp_path)
    time.sleep(0.5)
    train(second, tmp_path)
    wall = time.perf_counter() - begin
    seconds = read_events(tmp_path)[-1]["seconds"]
    assert set(seconds) == set(BUCKETS)
    assert all(value >= 0 for value in seconds.values())
    assert seconds["down"] >= 0.5
    assert 0.99 * wall <= sum(seconds.values()) <= wall


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """`lsm train` with the configuration of these tests, in a process of its own."""
    command = [sys.executable, "-m", "lsm_jax", "train", f"--config={short_training.__file__}", *arguments]
    # As many CPU devices as this process has: another number would sum in another order.
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | environment
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_interrupted_and_resumed_is_bit_identical(
    half_hours: Path, whole_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start([f"--config.data.paths={half_hours}", f"--workdir={tmp_path}"])
    while process.poll() is None and not saved_steps(tmp_path / CHECKPOINTS):
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 75, errors[-3000:]
        assert max(saved_steps(tmp_path / CHECKPOINTS)) == read_metrics(tmp_path)[-1]["step"]
    else:
        # What a kill may leave half done: a record cut short, a checkpoint begun.
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 11, "lo')
        (tmp_path / CHECKPOINTS / "11.orbax-checkpoint-tmp-1").mkdir(exist_ok=True)
    assert train(short_config(half_hours), tmp_path) == STEPS
    assert_same_run(whole_run, tmp_path)
    assert not list((tmp_path / CHECKPOINTS).glob("*tmp*"))


def test_work_that_a_crash_threw_away_and_time_without_a_process_are_told_apart() -> None:
    """Started at 1000, saved after 100 s, killed at 1150, started again at 1200."""
    clock = Clock(started=1200.0, now=lambda: 1210.0)
    saved = dict.fromkeys(BUCKETS, 0.0) | {"step": 80.0, "start": 20.0}
    clock.restore(saved, LifeSigns(first_started=1000.0, last_alive=1150.0, down=0.0))
    clock.begin_loop()
    seconds = clock.seconds()
    assert (seconds["lost"], seconds["down"], seconds["start"]) == (50.0, 50.0, 30.0)
    assert sum(seconds.values()) == 210.0


def test_down_time_before_a_crash_without_a_save_is_not_lost_work(tmp_path: Path) -> None:
    """As above, but killed again at 1230 before it saved, and started at 1300."""
    clock = Clock(started=1300.0, now=lambda: 1300.0)
    saved = dict.fromkeys(BUCKETS, 0.0) | {"step": 100.0}
    LifeSigns(first_started=1000.0, last_alive=1230.0, down=50.0).write(tmp_path)
    signs = LifeSigns.read(tmp_path)
    assert signs
    clock.restore(saved, signs)
    seconds = clock.seconds()
    assert (seconds["lost"], seconds["down"]) == (80.0, 120.0)
    (tmp_path / "clock.json").write_text('{"first_started": [1]}')
    assert LifeSigns.read(tmp_path) is None


def test_evaluation_can_be_switched_off(half_hours: Path, tmp_path: Path) -> None:
    train(short_config(half_hours, "evaluate.batches=0", "train.duration=2 steps"), tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


class Probe:
    """An evaluator that notes what it is given."""

    name = "probe"

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def run(self, run: Run, datasets: Sequence[Dataset]) -> Probe:
        assert [dataset.name for dataset in datasets] == ["half_hours"]
        self.runs.append(run)
        self.params = jax.device_get(run.params)
        return self

    def scalars(self) -> Mapping[str, float]:
        return {"score": 2.0 * self.runs[-1].step}

    def write(self, folder: Path) -> None:
        (folder / "probe.json").write_text(str(self.runs[-1].step))


def test_evaluators_run_at_their_cadence_on_the_parameters_that_are_saved(half_hours: Path, tmp_path: Path) -> None:
    probe = Probe()
    changes = ("train.duration=4 steps", "evaluate.suites=probe,", "evaluate.suites_every=2 steps")
    train(short_config(half_hours, *changes), tmp_path, [probe])
    scores = {record["step"]: record["probe/score"] for record in read_metrics(tmp_path) if "probe/score" in record}
    assert scores == {0: 0.0, 2: 4.0, 4: 8.0}
    assert {file.parent.name: file.read_text() for file in (tmp_path / "eval").rglob("probe.json")} == {
        "step-0": "0", "step-2": "2", "step-4": "4",
    }  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path).params, probe.params)
    assert probe.runs[-1].minutes > 0
    with pytest.raises(UserError, match=r"evaluate\.suites: no evaluator probe"):
        train(short_config(half_hours, *changes), tmp_path)


def test_suites_need_a_cadence_and_a_cadence_needs_suites(half_hours: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suites would never run: .* --config\.evaluate\.suites_every"):
        train(short_config(half_hours, "evaluate.suites=probe,"), tmp_path, [Probe()])
    with pytest.raises(UserError, match=r"suites_every has no suites to run: .* --config\.evaluate\.suites="):
        train(short_config(half_hours, "evaluate.suites_every=2 steps"), tmp_path)


def test_datasets_are_opened_once(half_hours: Path, tmp_path: Path) -> None:
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    train(short_config(half_hours, "train.duration=1 steps"), tmp_path)
    assert opened.count(str(half_hours / "dataset_info.json")) == 1


@pytest.mark.parametrize("key", ["train.batch_size", "train.grad_accum_steps", "rows.windows_per_row"])
def test_counts_of_nothing_are_refused(half_hours: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=0 must be at least 1".replace(".", r"\.")):
        train(short_config(half_hours, f"{key}=0"), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_lost_terminal_stop_the_run(number: signal.Signals) -> None:
    outside = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with PreemptionHandler() as handler:
            assert not handler.should_stop(0)
            os.kill(os.getpid(), number)
            assert handler.should_stop(1)
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, outside)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with PreemptionHandler() as handler:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not handler.should_stop(0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_rows_hold_neighbouring_windows_in_validation_and_in_every_micro_batch(half_hours: Path) -> None:
    """A micro-batch takes every other window of a batch, validation takes neighbours."""
    config = short_config(half_hours)
    program, _ = program_and_batches(half_hours)
    datasets = open_datasets(config.data)
    spec, schedule = data_spec(config.data, datasets), make_schedule(config, datasets)
    with contextlib.closing(DeviceBatches(config, datasets, spec, program, schedule, None, 0)) as batches:
        (batch,) = batches.validation()
        rows = np.asarray(batch["window_id"]).reshape(-1, 2)
        assert (np.diff(rows, axis=1) == 1).all()
        training = np.asarray(batches.next_training()[0]["window_id"])
        assert (np.diff(np.stack([training[part::2].reshape(-1, 2) for part in range(2)]), axis=-1) == 1).all()


def test_a_run_lists_whom_it_was_trained_on(half_hours: Path, tmp_path: Path) -> None:
    train(short_config(half_hours, "train.duration=1 steps"), tmp_path)
    people = open_dataset(half_hours).source("train").participants
    assert read_trained_on(tmp_path) == {"half_hours": sorted({*people})}
    (tmp_path / "trained_on.json").write_text("[1]")
    with pytest.raises(UserError, match=r"trained_on\.json is damaged"):
        read_trained_on(tmp_path)
    (tmp_path / "trained_on.json").unlink()
    assert read_trained_on(tmp_path) == {}


def test_another_configuration_is_refused_by_key(half_hours: Path, whole_run: Path) -> None:
    before = (whole_run / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"seed was 0, is 1 \(.*\); optimizer\.learning_rate was 0\.001, is 0\.5 \("):
        train(short_config(half_hours, "seed=1", "optimizer.learning_rate=0.5"), whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_the_command(half_hours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", f"--config={short_training.__file__}", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data.paths={half_hours}", "--config.train.duration=2 steps"]
    assert main(command) == 0
    assert "step 2: finished" in capsys.readouterr().err
    assert main([*command, "--config.seed=4"]) == 2
    assert "seed was 0, is 4" in capsys.readouterr().err
    assert main([*command, "--config.evaluate.every=1 steps", "--config.train.duration=3 steps"]) == 0


def test_changed_data_is_refused(half_hours: Path, tmp_path: Path) -> None:
    train(short_config(half_hours, "train.duration=1 steps"), tmp_path)
    spec = json.loads((tmp_path / "spec.json").read_text())
    spec["channels"]["steps"]["mean"] += 1
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="normalisation"):
        train(short_config(half_hours), tmp_path)


def test_a_preempted_run_saves_without_evaluating_and_evaluates_when_it_resumes(
    half_hours: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PreemptionHandler, "should_stop", lambda self, step: step == 8)
        with pytest.raises(Preempted, match="step 8: stopped early"):
            train(short_config(half_hours), tmp_path)
    assert saved_steps(tmp_path / CHECKPOINTS) and read_events(tmp_path)[-1]["event"] == "preempted"
    assert not [record for record in read_metrics(tmp_path) if record["step"] == 8 and "validation_loss" in record]
    assert train(short_config(half_hours), tmp_path) == STEPS
    assert_same_run(whole_run, tmp_path)


def test_profile_writes_a_trace(half_hours: Path, tmp_path: Path) -> None:
    train(short_config(half_hours, "train.profile_steps=2,3", "train.duration=4 steps"), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_nested_time_is_counted_once() -> None:
    now = iter([0.0, 1.0, 2.0, 5.0, 6.0, 10.0])
    clock = Clock(now=lambda: next(now))
    with clock.measure("step"), clock.measure("compile"):
        pass
    seconds = clock.seconds()
    assert (seconds["compile"], seconds["step"], seconds["other"]) == (3.0, 2.0, 5.0)
