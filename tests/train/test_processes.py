"""Several processes as one run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
import short_training
from short_training import short_config

from lsm_jax.errors import UserError
from lsm_jax.train import processes
from lsm_jax.train.agreement import disagreement
from lsm_jax.train.lock import RunLock
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.processes import several_processes
from lsm_jax.train.run import load_run


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # an interactive allocation, not a step of it
        (
            {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "2"},
            True,
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0"}, False),
        (  # the shell of `salloc`, in a step of its own
            {
                "SLURM_JOB_ID": "1",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NODELIST": "n1",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            False,
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1,t2,t3,t4"}, True),
        ({"TPU_WORKER_HOSTNAMES": "t1", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_PROCESS_ADDRESSES": "t1:8476,t2:8476"}, True),
        # What JAX sets on a Cloud TPU VM, where only the metadata server knows the other hosts.
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_schedulers_are_recognised(environment: dict[str, str], several: bool) -> None:
    assert several_processes(environment) is several


def test_a_process_that_srun_did_not_start_says_that_it_trains_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    processes.initialise()
    assert capsys.readouterr().err == (
        "lsm: SLURM's job has 4 tasks, but this process was not started by srun: it trains alone. Start it as "
        "`srun lsm train ...` to use them all.\n"
    )


def test_a_missing_accelerator_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_devices() -> None:
        raise AssertionError  # what JAX does where JAX_PLATFORMS names devices that are not there

    monkeypatch.setattr(jax, "local_devices", no_devices)
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(values={"jax_platforms": "cuda"}))
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cuda cannot be used \(no such device on this host\)"):
        processes.check_devices()


@pytest.mark.parametrize("other", [{"dataset days": "0b12"}, {}])
def test_a_difference_names_key_values_and_hosts(other: dict[str, str]) -> None:
    mine = {"host": "a", "workdir": "/run", "sees": True, "facts": {"dataset days": "77fe"}}
    sentence = disagreement([mine, mine, {**mine, "host": "c", "facts": other}])
    value = other.get("dataset days", "missing")
    assert f"differ: dataset days is {value} on process 2 (host c), 77fe on process 0 (host a)." in sentence
    assert disagreement([mine, mine]) == ""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("host:1", None, None), "need --process-id, --process-count"),
        ((None, 0, 2), "need --coordinator"),
        (("host", 0, 2), "HOST:PORT"),
        (("host:1", 2, 2), "below --process-count"),
    ],
)
def test_faulty_flags_are_refused(flags: tuple[str | None, int | None, int | None], words: str) -> None:
    with pytest.raises(UserError, match=words):
        processes.initialise(*flags)


def start_two(dataset: Path, workdir: Path, *overrides: str, second: Sequence[str] = ()) -> list[subprocess.Popen[str]]:
    """Two processes of a run; `second` are further options of the second, which override earlier ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "lsm_jax", "train", f"--config={short_training.__file__}", f"--workdir={workdir}"]
    command += [f"--coordinator={address}", "--process-count=2", "--join-timeout=60", f"--config.data.paths={dataset}"]
    command += [f"--config.{override}" for override in overrides]
    return [
        subprocess.Popen([*command, f"--process-id={number}", *more], stderr=subprocess.PIPE, text=True)
        for number, more in enumerate([[], second])
    ]


def endings(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each, once all have ended."""
    errors = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def test_processes_that_differ_are_refused_before_they_compile(half_hours: Path, tmp_path: Path) -> None:
    host, mine, other = socket.gethostname(), tmp_path / "run", tmp_path / "another"
    second = ["--config.optimizer.learning_rate=0.5", f"--workdir={other}"]
    for code, errors in endings(start_two(half_hours, mine, second=second)):
        assert code == 2, errors
        assert (
            "lsm train: error: the processes of this run differ: "
            f"optimizer.learning_rate is 0.5 on process 1 (host {host}), 0.001 on process 0 (host {host}); "
            f"--workdir {other} on process 1 (host {host}) is not the folder {mine} of process 0 (host {host}). "
        ) in errors
    assert not list(mine.iterdir()) and not other.exists()


def test_a_second_run_in_a_folder_is_refused_on_all_its_processes(half_hours: Path, tmp_path: Path) -> None:
    def report(*_: object, **__: object) -> None:
        raise AssertionError("nothing to report")

    with RunLock(tmp_path, report, report):
        for code, errors in endings(start_two(half_hours, tmp_path)):
            assert code == 2, errors
            assert f"{tmp_path} is in use by another run: process {os.getpid()} on " in errors


def test_two_processes_train_as_one_stop_together_and_one_goes_on(half_hours: Path, tmp_path: Path) -> None:
    changes = ["train.grad_accum_steps=1", "optimizer.schedule=constant", "optimizer.warmup=0 steps"]
    changes += ["checkpoint.every=1000000 steps"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    train(short_config(half_hours, *changes), alone)
    ours = read_metrics(alone)
    processes = start_two(half_hours, shared, *changes, "mesh.slices=2", "train.duration=1000000 steps")
    while len(read_metrics(shared)) < len(ours) and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 75, errors[-3000:]
    for one, other in zip(ours, read_metrics(shared), strict=False):
        assert one["step"] == other["step"]
        for name in {"loss", "validation_loss", "gradient_norm", "tokens_visible", "loss_weight"} & {*one}:
            # The order of sums across processes is all that may differ.
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=f"{name} at {one['step']}")
    stopped = load_run(shared).step
    assert train(short_config(half_hours, *changes, f"train.duration={stopped + 2} steps"), shared) == stopped + 2
    records = read_metrics(shared)
    assert [record["step"] for record in records if "loss" in record] == list(range(1, stopped + 3))
