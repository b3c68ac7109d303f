"""What a person reads while a run trains, and that a run goes on when nobody reads any more."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lsm_jax.train.metrics import MetricsLog, read_metrics
from lsm_jax.train.terminal import ProgressReporter
from lsm_jax.train.workdir import METRICS, TENSORBOARD


@pytest.mark.parametrize(("speaks", "printed"), [(True, "begun\nstep 10: loss 0.5\n"), (False, "")])
def test_a_log_gets_a_line_per_record_from_the_first_process_only(speaks: bool, printed: str) -> None:
    log = io.StringIO()
    terminal = ProgressReporter(total=20, enabled=speaks, console=Console(file=log, quiet=not speaks, soft_wrap=True))
    terminal.message("begun")
    terminal.update(10, "loss 0.5")
    terminal.close()
    assert log.getvalue() == printed


class Closed(io.StringIO):
    """A pipe whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("Broken pipe")


def test_a_terminal_that_is_gone_is_said_once_and_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    monkeypatch.setattr(sys, "stderr", Closed())
    reporter = ProgressReporter(total=20, enabled=True, lost=lost.append)
    reporter.message("begun")
    reporter.update(10, "loss 0.5")
    reporter.close()
    assert lost == ["Broken pipe"]


@pytest.mark.parametrize("arguments", [["config", "configs/lsm2.py:small"], ["train", "--help"]])
def test_a_reader_that_stops_reading_gets_no_traceback(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [sys.executable, "-m", "lsm_jax", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert finished.returncode in {0, 141}
    assert finished.stderr == ""


def test_metrics_and_events_that_cannot_be_written_are_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / METRICS).mkdir()
    (tmp_path / TENSORBOARD).touch()
    log = MetricsLog(tmp_path, -1, lambda event, sentence, **_: said.append(sentence))
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.4})
    log.go_back(1)
    log.write(2, {"loss": 0.3})
    assert len(said) == 3  # again after going back
    assert f"{tmp_path / METRICS} cannot be written (Is a directory); the run goes on" in said[0]
    assert f"{tmp_path / TENSORBOARD} cannot be written" in said[1]
    (tmp_path / METRICS).rmdir()
    log.write(3, {"loss": 0.2})
    log.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == [(1, 0.5), (2, 0.3), (3, 0.2)]
    assert said[-1] == f"{tmp_path / METRICS} can be written again and has all records."


def test_a_full_disk_leaves_no_half_records(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path, -1, lambda event, sentence, **_: said.append(sentence))
    log.write(1, {"loss": 0.5})
    size = (tmp_path / METRICS).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        log.write(2, {"loss": 0.4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written (File too large)" in said[0]
    log.write(3, {"loss": 0.3})
    log.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3
