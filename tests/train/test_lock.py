"""One run at a time in a folder, and what a crashed one leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsm_jax.errors import UserError
from lsm_jax.train import lock
from lsm_jax.train.lock import LOCK, RunLock, holds

HOLD = """
import sys, time
from pathlib import Path
from lsm_jax.train.lock import RunLock
with RunLock(Path(sys.argv[1]), print, print, beat=0.05):
    print("held", flush=True)
    time.sleep(600)
"""


class Told:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.lost: list[str] = []

    def report(self, event: str, sentence: str, *, step: int | None = None, **details: object) -> None:
        self.events.append(f"{event}: {sentence}")

    def take(self, folder: Path, beat: float = 0.05) -> RunLock:
        return RunLock(folder, self.report, self.lost.append, beat)


def holder_of(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_with_the_name_of_the_first_and_may_follow_it(tmp_path: Path) -> None:
    told = Told()
    with (
        told.take(tmp_path),
        pytest.raises(UserError, match=f"in use by another run: process {os.getpid()} on .* since"),
    ):
        told.take(tmp_path).__enter__()
    assert not (tmp_path / LOCK).exists()
    with told.take(tmp_path) as third:
        assert holds(tmp_path, third.token, patience=0)
    assert not told.events and not told.lost


def test_a_killed_run_does_not_block_the_next(tmp_path: Path) -> None:
    process = holder_of(tmp_path)
    with pytest.raises(UserError, match=f"process {process.pid} on"):
        Told().take(tmp_path).__enter__()
    process.kill()
    process.wait()
    told = Told()
    with told.take(tmp_path):
        assert told.events[0].startswith(f"took_over: the run of process {process.pid} on ")


def test_a_run_on_another_host_is_known_by_its_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_flock", lambda _: None)  # as on a file system without locks
    process = holder_of(tmp_path)
    told = Told()
    with pytest.raises(UserError, match=f"in use by another run: process {process.pid}"):
        told.take(tmp_path).__enter__()
    process.send_signal(signal.SIGSTOP)
    try:
        with told.take(tmp_path):
            assert [event.partition(":")[0] for event in told.events[-2:]] == ["waiting_for_lock", "took_over"]
    finally:
        process.kill()
        process.wait()


def test_a_run_that_was_stopped_for_long_learns_that_another_has_its_folder(tmp_path: Path) -> None:
    told = Told()
    with told.take(tmp_path):
        other = {"host": "elsewhere", "pid": 7, "since": "noon", "token": "another"}
        while not told.lost:
            (tmp_path / LOCK).write_text(json.dumps(other))
            time.sleep(0.01)
    assert told.lost == [
        f"another run, process 7 on elsewhere, since noon, has taken {tmp_path} over: this one was stopped."
    ]
    assert json.loads((tmp_path / LOCK).read_text()) == other  # the other's lock is left alone


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be used as --workdir: Not a directory"):
        Told().take(tmp_path / "file" / "run").__enter__()
