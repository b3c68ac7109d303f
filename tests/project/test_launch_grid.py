"""`launch/grid` with stand-ins for `lsm` and the engines: what it takes for finished, and how it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Writes its arguments to `calls`, and ends with the exit code in the file `code`. `wait` waits for SIGTERM instead.
LSM = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$*" >>"$here/calls"
workdir=$(sed -n 's/.*--workdir \\([^ ]*\\).*/\\1/p' <<<"$*")
mkdir -p "$workdir"
code=$(<"$here/code")
if [[ $code == wait ]]; then
  trap 'exit 75' TERM
  touch "$here/waiting"
  while :; do sleep 0.05; done
fi
exit "$code"
"""


class Grid:
    """A copy of `launch/grid` whose `lsm` and `launch/slurm` are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / ".venv" / "bin"
        self.bin.mkdir(parents=True)
        (folder / "launch").mkdir()
        shutil.copy(REPOSITORY / "launch" / "grid", folder / "launch")
        for file in (self.bin / "lsm", folder / "launch" / "slurm"):
            file.write_text(LSM.replace("$here/", f"{self.bin}/"))
            file.chmod(0o755)
        self.will_end_with("0")

    def will_end_with(self, code: str) -> None:
        (self.bin / "code").write_text(code)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [self.folder / "launch" / "grid", self.folder / "runs", "c.py:v", "model.width=8,16", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ})

    def run(self, *options: str) -> tuple[int, list[str]]:
        """(exit code, calls of this run)."""
        (self.bin / "calls").write_text("")
        code = self.start(*options).wait(60)
        return code, (self.bin / "calls").read_text().splitlines()

    def count(self) -> tuple[int, int]:
        """(exit code, how many calls)."""
        code, calls = self.run()
        return code, len(calls)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


@pytest.mark.parametrize("code", [75, 130])
def test_a_run_that_was_stopped_is_not_finished_and_stops_the_grid(grid: Grid, code: int) -> None:
    grid.will_end_with(str(code))
    assert grid.count() == (code, 1)
    grid.will_end_with("0")
    assert grid.count() == (0, 2)
    assert grid.run() == (0, [])


def test_a_run_that_failed_does_not_stop_the_others_and_is_tried_again(grid: Grid) -> None:
    grid.will_end_with("1")
    assert grid.count() == (1, 2)
    assert grid.count() == (1, 2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_same_line_goes_on(grid: Grid, number: signal.Signals, code: int) -> None:
    grid.will_end_with("wait")
    process = grid.start()
    end = time.monotonic() + 60
    while not (grid.bin / "waiting").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted; the same command goes on" in errors
    assert not list(grid.folder.rglob("grid.done"))
    grid.will_end_with("0")
    assert grid.count() == (0, 2)


def test_an_engine_gets_every_run_until_it_is_finished(grid: Grid) -> None:
    options = ("--launcher", "slurm h100:1x8 --time=8:00:00", "--", "--config.train.duration=9 steps")
    code, calls = grid.run(*options)
    assert code == 0
    runs = grid.folder / "runs"
    expected = f"h100:1x8 --time=8:00:00 -- --config c.py:v --workdir {runs}/width=8 --config.model.width=8 "
    assert calls[0] == expected + "--config.train.duration=9 steps"
    finished = json.dumps({"event": "finished", "step": 9})
    (runs / "width=8" / "events.jsonl").write_text(f'{{"event": "started"}}\n{finished}\n')
    (runs / "width=16" / "events.jsonl").write_text('{"event": "preempted"}\n')
    code, calls = grid.run(*options)
    assert (code, len(calls)) == (0, 1) and "width=16" in calls[0]
    # Another duration is another run.
    assert len(grid.run(*options[:-1], "--config.train.duration=99 steps")[1]) == 2
    assert "--dry-run" in grid.run(*options[:2], "--dry-run")[1][0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--launcher", "slrum h100:1x8"), "there is no launch/slrum"),
        (("model.size=",), "model.size= needs at least one value."),
        (("--launcher", "slurm h100:1x8", "--evaluate", "generative"), "with lsm evaluate --workdir"),
    ],
)
def test_faulty_options_are_refused(grid: Grid, options: tuple[str, ...], sentence: str) -> None:
    process = grid.start(*options)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and sentence in errors
