"""A process that hangs, is killed or is stopped ends the run with a sentence on every other process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsm_jax.events import read_events

# A loop of collective operations, as training is; "hangs" stops in one of them.
LOOP = """
import sys, time
from pathlib import Path
from jax.experimental import multihost_utils
from lsm_jax.cli.main import reported
from lsm_jax.config import TrainConfig
from lsm_jax.errors import UserError
from lsm_jax.events import EventLog, event_file
from lsm_jax.train import processes
from lsm_jax.train.watchdog import Watchdog

address, process, workdir, fate = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
processes.initialise(address, process, 2)
report = EventLog(event_file(workdir, process), process, lambda text: print(text, file=sys.stderr, flush=True)).report
hang, lost = 3.0 if fate == "hangs" else 0.0, 0.0 if fate == "is slow" else 6.0
timeouts = TrainConfig(hang_timeout=hang, lost_timeout=lost)

def loop():
    with Watchdog(workdir, timeouts, report) as watchdog:
        watchdog.phase = lambda: "step"
        for step in range(9 if fate == "is slow" else 10**6):
            multihost_utils.sync_global_devices("step")
            watchdog.progress(step)
            if step == 3:
                print("runs", flush=True)
                if process == 1 and fate == "hangs":
                    time.sleep(600)
                if process == 1 and fate == "is slow":
                    time.sleep(2)
                if process == 1 and fate == "fails":
                    raise UserError("record 7 of shard 3 is missing.")

sys.exit(reported("train", loop))
"""

Pair = list["subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], Pair]:
    def start(fate: str) -> Pair:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        pair = [
            subprocess.Popen(
                [sys.executable, "-c", LOOP, address, str(process), str(tmp_path), fate],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for process in range(2)
        ]  # fmt: skip
        for process in pair:
            assert process.stdout and "runs\n" in process.stdout  # libraries print there too
        return pair

    return start


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_a_lost_process_ends_the_run_with_its_name(
    start: Callable[[str], Pair], tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    pair = start("is lost")
    pair[victim].send_signal(number)
    survivor = pair[1 - victim]
    errors = survivor.communicate(timeout=120)[1]
    pair[victim].kill()
    pair[victim].communicate()
    host, stacks = socket.gethostname(), tmp_path / f"hang-{1 - victim}.txt"
    assert survivor.returncode == 1, errors
    last = errors.strip().splitlines()[-1]
    # A process that is lost at once may not have told its host yet.
    names = [
        f"lsm train: failed: process {victim} (host {name}) gave no sign of life for" for name in (host, "unknown")
    ]
    assert last.startswith(tuple(names)), errors
    assert last.endswith(f"What every thread was doing is in {stacks}.")
    assert "Current thread" in stacks.read_text() or "Thread 0x" in stacks.read_text()
    events = [event["event"] for event in read_events(tmp_path)]
    assert events[-1] == "process_lost"
    if number == signal.SIGSTOP:
        assert "waiting_for_processes" in events
        assert f"waiting for process {victim} (host {host}): no sign of life for 2 s or more" in errors


def test_a_process_that_fails_ends_the_others_with_its_sentence(start: Callable[[str], Pair]) -> None:
    first, second = start("fails")
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (2, 2), errors
    assert errors[1].strip().splitlines()[-1] == "lsm train: error: record 7 of shard 3 is missing."
    failed = f"lsm train: failed: process 1 (host {socket.gethostname()}) has failed: record 7 of shard 3 is missing."
    assert errors[0].strip().splitlines()[-1] == failed


def test_without_a_timeout_nobody_is_lost(start: Callable[[str], Pair]) -> None:
    pair = start("is slow")
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors


def test_a_step_that_hangs_ends_all_processes_with_their_stacks(start: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = start("hangs")
    errors = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], errors
    assert all("hangs: no progress for 3 s (train.hang_timeout) at step 3, in 'step'" in text for text in errors)
    assert "sync_global_devices" in (tmp_path / "hang-0.txt").read_text()
    assert 'File "<string>"' in (tmp_path / "hang-1.txt").read_text()
    assert "hang" in [event["event"] for event in read_events(tmp_path)]
