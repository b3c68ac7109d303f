"""Runs that are killed again and again end as runs that were not, in every bit: LSM-2 and SensorLM."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import short_training
from forked_lsm import Start, forked_lsm
from short_training import arguments

from lsm_jax.events import read_events
from lsm_jax.sharding import named_parameters
from lsm_jax.train.checkpoints import saved_steps
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.workdir import CHECKPOINTS

STEPS = 90
TIMING = {"time", "windows_per_second", "mfu", "input_wait", "goodput"}
EVALUATED = 9
KILLED = (
    "start", "save", "record", "save", "evaluation", "restore", "save", "resume", "save", "evaluation",
)  # fmt: skip
DELAYS = {"start": 6.0, "restore": 1.5, "evaluation": 0.005}  # seconds after such a moment, at most
CHANGES = {
    "": (),
    "coca": ("optimizer.name=muon",),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with forked_lsm(tmp_path_factory.mktemp("logs")) as start:
        yield start


def training(dataset: Path, variant: str, workdir: Path) -> list[str]:
    """The arguments of `lsm`: many saves, and evaluations between them."""
    changes = [f"train.duration={STEPS} steps", "checkpoint.every=3 steps", f"evaluate.every={EVALUATED} steps"]
    changes += ["checkpoint.keep=2", *CHANGES[variant]]
    command = ["train", f"--config={short_training.__file__}:{variant}", f"--workdir={workdir}"]
    return command + arguments(dataset, *changes, variant=variant)


def records(workdir: Path) -> list[dict[str, Any]]:
    """The records without what depends on the machine."""
    return [{name: value for name, value in each.items() if name not in TIMING} for each in read_metrics(workdir)]


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters, optimizer state, averages, random key, step and data position of the last checkpoint."""
    folder = workdir / CHECKPOINTS
    content = ocp.PyTreeCheckpointer().restore(folder / str(max(saved_steps(folder))))
    return {path: np.asarray(leaf) for path, leaf in named_parameters(content) if not path.startswith("clock/")}


def unfinished(workdir: Path) -> set[str]:
    """The folders of saves that have begun and not been committed."""
    return {folder.name for folder in (workdir / CHECKPOINTS).glob("*tmp*")}


def progress(workdir: Path, moment: str) -> int:
    """How often a moment has come in all starts: a record, the last start found dead, the beginning of training."""
    if moment == "record":
        return len(read_metrics(workdir))
    come = {"took_over"} if moment == "restore" else {"started", "resumed"}
    return sum(each["event"] in come for each in read_events(workdir))


def is_evaluating(workdir: Path) -> bool:
    """Whether the newest record is that of a step after which the run evaluates, which it writes first."""
    newest = read_metrics(workdir)[-1:]
    return any("loss" in record and record["step"] % EVALUATED == 0 for record in newest)


def wait_for(process: BaseProcess, workdir: Path, moment: str, saves: int) -> None:
    """Waits for a moment of a process: not at all for its start, and for the beginning of this many saves."""
    before, left, begun = progress(workdir, moment), unfinished(workdir), 0
    while moment != "start" and process.is_alive():
        now = unfinished(workdir)
        begun += bool(now - left)
        come = begun >= saves if moment == "save" else progress(workdir, moment) > before
        if come and (moment != "evaluation" or is_evaluating(workdir)):
            return
        left = now  # a start removes what a kill has left, and may begin the same save again
        time.sleep(0.001)


@pytest.mark.parametrize("variant", CHANGES)
def test_twenty_kills_change_no_bit(half_hours: Path, start: Start, tmp_path: Path, variant: str) -> None:
    random = np.random.default_rng(len(variant))
    compiled, whole, broken = tmp_path / "compiled", tmp_path / "whole", tmp_path / "broken"
    process = start(*training(half_hours, variant, whole), compiled=compiled)
    process.join()
    assert process.exitcode == 0
    command, saves_cut = training(half_hours, variant, broken), 0
    # Ten for each objective: while it starts, compiles, trains, saves, evaluates, restores and has just resumed.
    for kill, moment in enumerate(KILLED):
        delay = random.uniform(0, DELAYS.get(moment, 0.1))
        process = start(*command, compiled=tmp_path / "empty" if kill == 0 else compiled)
        wait_for(process, broken, moment, saves=1 + kill % 2)
        process.join(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"kill {kill} ({moment})"
        saves_cut += bool(unfinished(broken))
    assert saves_cut > 0
    process = start(*command, compiled=compiled)
    wait_for(process, broken, "record", saves=0)
    process.terminate()
    process.join(30)
    assert process.exitcode == 75
    assert max(saved_steps(broken / CHECKPOINTS)) == read_metrics(broken)[-1]["step"] < STEPS
    process = start(*command, compiled=compiled)
    process.join()
    assert process.exitcode == 0
    assert records(broken) == records(whole)
    ours, expected = arrays(broken), arrays(whole)
    assert ours.keys() == expected.keys() and int(ours["position"]) == STEPS
    for path, value in expected.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
