"""Metrics of a run: fetched from the devices, written to `metrics.jsonl` and TensorBoard, shown on the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsm_jax.config import Config
from lsm_jax.events import Report, json_lines
from lsm_jax.train.hardware import total_peak
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.tensorboard import TensorBoard
from lsm_jax.train.terminal import ProgressReporter
from lsm_jax.train.timing import Clock
from lsm_jax.train.trackers import Tracker
from lsm_jax.train.workdir import METRICS, TENSORBOARD, replace_text

_IMPOSSIBLE = 1e3  # standard deviations


class MetricsLog:
    """Writes `metrics.jsonl`, one line per record, and the same numbers to trackers. Lead host only.

    A record has `step`, and training metrics with `time` (docs/reference/runs.md), `validation_*` metrics, or
    `SUITE/NAME` results of evaluators.

    Args:
      resumed_at: step of the restored checkpoint, -1 for a new run. Later records are removed, because those steps run
        again: an interrupted run leaves the same records as an uninterrupted one.
      report: told of a file that cannot be written. The run goes on.
      tensorboard: whether TensorBoard events are written.
      trackers: other trackers, which are closed with the log.
    """

    def __init__(
        self,
        workdir: Path,
        resumed_at: int,
        report: Report,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._workdir, self._report, self._trackers = workdir, report, trackers
        self._has_tensorboard = tensorboard
        self._tensorboard: TensorBoard | None = None
        self._kept: str | None = None  # what the file must hold before anything is appended
        self._unsaved, self._failing = bytearray(), False
        self._file: io.FileIO | None = None
        self._open(resumed_at)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a record. One that cannot be written is kept, and written with the next."""
        self._unsaved += _line({"step": step, **metrics}).encode()
        self._save()
        numbers = dict(_flat(metrics))
        if self._tensorboard:
            self._tensorboard.write(step, numbers.items())
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def write_clock(self, clock: Clock) -> None:
        """Leaves a sign of life."""
        with contextlib.suppress(OSError):
            clock.write(self._workdir)

    def go_back(self, step: int) -> None:
        """Removes the records of later steps, which run again."""
        self._close_files()
        self._open(step)

    def close(self) -> None:
        """Closes the files and the trackers."""
        self._close_files()
        for tracker in self._trackers:
            tracker.close()

    def _close_files(self) -> None:
        self._save()
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()

    def _open(self, resumed_at: int) -> None:
        kept = [record for record in self._records() if record["step"] <= resumed_at]
        self._kept, self._unsaved, self._file = "".join(map(_line, kept)), bytearray(), None
        self._save()
        if self._has_tensorboard:
            self._tensorboard = TensorBoard(self._workdir / TENSORBOARD, resumed_at + 1, self._no_tensorboard)

    def _records(self) -> list[dict[str, Any]]:
        """All records of the run, those that could not be written included."""
        if self._kept is None:
            return read_metrics(self._workdir) + _parsed(self._unsaved.decode())
        return _parsed(self._kept + self._unsaved.decode()) if self._failing else read_metrics(self._workdir)

    def _save(self) -> None:
        """Writes what is not written yet, from where an earlier attempt stopped."""
        file = self._workdir / METRICS
        try:
            if self._kept is not None:
                replace_text(file, self._kept)
                self._kept = None
            self._file = self._file or file.open("ab", buffering=0)
            while self._unsaved:
                del self._unsaved[: self._file.write(self._unsaved)]
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._report(
                    "metrics_unwritable",
                    f"{file} cannot be written ({error.strerror}); the run goes on and tries again with each record.",
                )
            return
        if self._failing:
            self._failing = False
            self._report("metrics_written", f"{file} can be written again and has all records.")

    def _no_tensorboard(self, reason: str) -> None:
        self._report(
            "tensorboard_unwritable",
            f"{self._workdir / TENSORBOARD} cannot be written ({reason}); the run goes on without. {METRICS} has "
            "the same numbers.",
        )


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`, without lines that a crash cut short."""
    file = workdir / METRICS
    return _parsed(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else []


def _parsed(text: str) -> list[dict[str, Any]]:
    return [record for record in json_lines(text) if isinstance(record.get("step"), int)]


class MetricsRecorder(contextlib.AbstractContextManager["MetricsRecorder"]):
    """Fetches training metrics one step late, so that the device never waits, and writes them when they are due.

    Args:
      log: None on processes that write nothing.
      skipped: steps skipped before this start.

    Attributes:
      skipped: steps skipped so far, those of work that was undone included.
      bad_in_row: steps skipped without a good one since.
      last_fault: why the last of them was.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        schedule: TrainSchedule,
        log: MetricsLog | None,
        reporter: ProgressReporter,
        report: Report,
        skipped: int = 0,
    ) -> None:
        self._clock, self._schedule, self._log, self._reporter = clock, schedule, log, reporter
        self._report, self._max_bad_steps = report, config.train.max_bad_steps
        self._peak, origin = total_peak(config.train.peak_flops)
        reporter.message(f"peak for MFU: {self._peak / 1e12:.3g} TFLOP/s ({origin})")
        self._pending: tuple[int, Any, Mapping[str, np.ndarray]] | None = None
        self.skipped, self.bad_in_row, self.last_fault = skipped, 0, ""
        self._skipped_in_state = skipped
        self.start_interval()

    @property
    def must_act(self) -> bool:
        """Whether `train.max_bad_steps` steps in a row have been skipped."""
        return self.bad_in_row >= self._max_bad_steps > 0

    def go_back(self, step: int, skipped: int) -> None:
        """Forgets everything after a step whose state is restored; `skipped` is what that state counts."""
        self._pending, self.bad_in_row, self._skipped_in_state = None, 0, skipped
        if self._log:
            self._log.go_back(step)
        self.start_interval()

    def write_late(self, step: int, metrics: Any, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the metrics of `step`, which may still be running, and writes those of the step before.

        Args:
          rows: this process's rows of the step's batch, to tell what was in a bad one.
        """
        self.write_pending()
        self._pending = (step, metrics, rows)

    def write_pending(self) -> None:
        """Waits for the last step given to `write_late`, and writes its metrics if they are due."""
        if self._pending is None:
            return
        (step, metrics, rows), self._pending = self._pending, None
        with self._clock.measure("step"):
            fetched = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._steps += 1
        self._useful_flops += fetched.get("useful_flops", 0.0)
        self._check_taken(step, fetched, rows)
        if self._schedule.logs(step):
            record = fetched | self._rates()
            self.write(step, record | {"time": self._clock.seconds()})
            speed = f"{record['windows_per_second']:.3g} windows/s, MFU {record['mfu']:.1%}"
            self._reporter.update(step, f"loss {record['loss']:.4f}, {speed}")
            self.start_interval()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes a record now."""
        if self._log:
            self._log.write(step, metrics)
            self._log.write_clock(self._clock)

    def __exit__(self, *_: object) -> None:
        if self._log:
            self._log.close()

    def _check_taken(self, step: int, metrics: Mapping[str, float], rows: Mapping[str, np.ndarray]) -> None:
        """Reports a step that was skipped, with the windows of its batch that have impossible values."""
        new = int(metrics["skipped"]) - self._skipped_in_state
        self._skipped_in_state += new
        self.skipped += new
        self.bad_in_row = self.bad_in_row + 1 if new else 0
        if not new:
            return
        loss, norm = metrics["loss"], metrics["gradient_norm"]
        self.last_fault = f"loss {loss:.3g}, gradient norm {norm:.3g}"
        if math.isfinite(loss) and math.isfinite(norm):
            self.last_fault += f", which is typically {metrics['typical_gradient_norm']:.3g}"
        largest = np.abs(np.where(rows["observed"], rows["values"], 0.0)).max(axis=(1, 2))
        suspects = rows["window_id"][~(largest <= _IMPOSSIBLE)].tolist()
        where = f"; impossible values in windows {', '.join(map(str, suspects[:5]))}" if suspects else ""
        self._report(
            "bad_step", f"step {step} was skipped: {self.last_fault}{where}.",
            step=step, loss=str(loss), gradient_norm=str(norm), suspects=suspects, windows=rows["window_id"].tolist(),
        )  # fmt: skip

    def start_interval(self) -> None:
        """Speed counts from now."""
        self._steps, self._useful_flops, self._interval_start = 0, 0.0, self._clock.seconds()

    def _rates(self) -> dict[str, float]:
        """Speed since the last record, without the time of evaluations, checkpoints and compilation."""
        now = self._clock.seconds()
        spent = {bucket: now[bucket] - self._interval_start[bucket] for bucket in ("step", "input", "other")}
        seconds = max(sum(spent.values()), 1e-9)
        return {
            "windows_per_second": self._steps * self._schedule.batch_size / seconds,
            "mfu": self._useful_flops / seconds / self._peak,
            "input_wait": spent["input"] / seconds,
            "goodput": now["step"] / max(sum(now.values()), 1e-9),
        }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in metrics.items():
        pairs += _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", float(value))]
    return pairs
