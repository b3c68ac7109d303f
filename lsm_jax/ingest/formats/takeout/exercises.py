"""Exercises of Takeout: JSON logs, and the table UserExercises."""

from __future__ import annotations

from typing import Any

import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.takeout.kinds import EXERCISE_COLUMNS, Kind
from lsm_jax.ingest.formats.takeout.recording import DAY, JSON_RANK, TOO_LONG, TakeoutRecording
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows

_ACTIVITIES = {"walk": "walking", "run": "running", "bike": "cycling", "swim": "swimming", "weights": "weightlifting"}


def add_exercise(log: Any, found: TakeoutRecording) -> None:
    """A log with its length in milliseconds."""
    start, seconds = found.instant(log["startTime"]), float(log["duration"]) / 1000
    if not 0 <= seconds <= DAY:
        raise UnusableEntry(TOO_LONG)
    found.add_event(_event(str(log["activityName"]), start, start + seconds), JSON_RANK)


def read_exercises(file: SourceFile, _: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows of an exercise each."""
    *times, name = EXERCISE_COLUMNS
    for block in read_rows(file, EXERCISE_COLUMNS, report):
        start, end, reasons = found.times(block, (times[0], times[1]))
        names = block[name].fill_null("").str.strip_chars()
        reasons = add_reason(reasons, names == "", "exercise without a name")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        rows = pl.DataFrame({"name": names, "start": start, "end": end}).filter(good)
        for row in rows.iter_rows():
            found.add_event(_event(*row))


def _event(name: str, start: float, end: float) -> RecordEvent:
    name = name.lower()[:64]
    return RecordEvent("activity", _ACTIVITIES.get(name, name), start / 60, end / 60)
