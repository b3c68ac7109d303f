"""Values of a day or a night: labels of the day."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.takeout.kinds import Kind
from lsm_jax.ingest.formats.takeout.recording import DAY, TakeoutRecording
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.text import read_times


def add_resting_heart_rate(entry: Any, found: TakeoutRecording) -> None:
    """Of a day, which is given as a date on the wearer's clock."""
    value = float(entry["value"]["value"])
    if not math.isfinite(value):
        raise UnusableEntry("value is not a number")
    if value and entry["value"]["date"]:  # days without a value have 0
        month, day, year = (int(part) for part in str(entry["value"]["date"]).split("/"))
        noon, reasons = _noons(pl.Series([f"{year + 2000 if year < 100 else year}-{month:02d}-{day:02d}"]))
        if reasons[0] is not None:
            raise UnusableEntry(reasons[0])
        found.add_day_labels(noon[0], {"resting_heart_rate": value}, is_wall_clock=True)


def read_daily(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows of a date on the wearer's clock, which is often written as midnight UTC, and a value."""
    assert kind.daily
    column, label = kind.daily
    for block in read_rows(file, ("timestamp", column), report):
        noon, reasons = _noons(block["timestamp"])
        value = numbers(block[column])
        value = value.set((~value.is_finite()).fill_null(True), None)
        reasons = add_reason(reasons, value.is_null() & ~is_empty(block[column]), "value is not a number")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        for second, number in pl.DataFrame({"second": noon, "value": value}).filter(good).drop_nulls().iter_rows():
            if number:  # nights without a measurement have 0
                found.add_day_labels(second, {label: number}, is_wall_clock=True)


def _noons(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(noon of each date, as if the wearer's clock showed UTC; reasons where there is none)."""
    dates = read_times(cells.str.strip_chars().str.slice(0, 10), ("%Y-%m-%d",), "UTC")
    return dates.second + DAY / 2, dates.reason
