"""Metrics to a file, to TensorBoard and to the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lsm_jax.train.workdir import METRICS, REACHED, TENSORBOARD


class MetricsLog:
    """What the first process writes: `metrics.jsonl`, one line a record, and TensorBoard events of the same numbers.

    A record has `step`, then either training metrics and `time` (see docs/training.md) or `validation_*` metrics.

    Args:
      resumed_at: step of the checkpoint training goes on from. Later records are removed, for those steps are made
        again: an interrupted run leaves the same records as one that was not.
    """

    def __init__(self, workdir: Path, resumed_at: int) -> None:
        file, reached = workdir / METRICS, workdir / REACHED
        reached.with_name(f"{REACHED}.new").write_text(json.dumps(seconds_reached(workdir)), encoding="utf-8")
        reached.with_name(f"{REACHED}.new").replace(reached)
        kept = [record for record in read_metrics(workdir) if record["step"] <= resumed_at]
        rewritten = file.with_name(f"{METRICS}.new")
        rewritten.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        rewritten.replace(file)
        self._file = file.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / TENSORBOARD), purge_step=resumed_at + 1, write_to_disk=True)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a record."""
        self._file.write(_line({"step": step, **metrics}))
        self._file.flush()
        for name, value in _flat(metrics):
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`; a last line that a crash cut short is left out."""
    file = workdir / METRICS
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def seconds_reached(workdir: Path) -> float:
    """The wall time of a run over all its starts, as far as it was written down; also that of records since removed."""
    times = [record["time"] for record in read_metrics(workdir) if isinstance(record.get("time"), dict)]
    try:
        before = float((workdir / REACHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = 0.0
    return max([before, *(sum(time.values()) for time in times)])


class Terminal:
    """A progress bar where a person looks on, plain sentences everywhere; silent on all processes but the first."""

    def __init__(self, total: int, speaks: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=not speaks, soft_wrap=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=self._console, disable=not (speaks and self._console.is_terminal))
        self._task = self._progress.add_task("training", total=total)
        self._progress.start()

    def say(self, text: str) -> None:
        """Prints a sentence above the bar."""
        self._console.print(text, markup=False)

    def show(self, step: int, text: str) -> None:
        """Moves the bar; in a log, where there is none, a line."""
        if self._progress.disable:
            self.say(f"step {step}: {text}")
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_finite(record), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is none is null."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for name, value in metrics.items():
        pairs += _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", float(value))]
    return pairs
