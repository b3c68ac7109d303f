"""Values of a day or a night: labels of the day."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.takeout.kinds import Kind
from lsm_jax.ingest.formats.takeout.recording import DAY, JSON_RANK, SOURCE, TakeoutRecording, source_names
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import FLOATING
from lsm_jax.ingest.times.text import ISO_FORMATS, read_times

_NO_MEASUREMENT = "day or night without a measurement"  # written as 0, or as an empty cell
_NOT_PLACED = "time in UTC beside a clock of which no zone is known: give --time-zone"


def add_resting_heart_rate(entry: Any, found: TakeoutRecording) -> None:
    """Of a day, which is given as a date on the wearer's clock."""
    value = float(entry["value"]["value"])
    if not math.isfinite(value):
        raise UnusableEntry("value is not a number")
    if not value or not entry["value"]["date"]:
        raise UnusableEntry(_NO_MEASUREMENT)
    month, day, year = (int(part) for part in str(entry["value"]["date"]).split("/"))
    noon, reasons = _noons(pl.Series([f"{year + 2000 if year < 100 else year}-{month:02d}-{day:02d}"]))
    if reasons[0] is not None:
        raise UnusableEntry(reasons[0])
    found.add_day_labels(noon[0], {"resting_heart_rate": value}, is_wall_clock=True, rank=JSON_RANK)


def read_daily(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows of a value and its day: a date on the wearer's clock, or the time at which the night ended."""
    assert kind.daily
    column, label, is_instant = kind.daily
    for block in read_rows(file, ("timestamp", column, SOURCE), report):
        second, reasons = _noons(block["timestamp"])
        is_wall = pl.repeat(True, len(block), eager=True)
        if is_instant:
            times = read_times(block["timestamp"], ISO_FORMATS, "")
            is_wall = (times.clock == FLOATING).fill_null(times.second.is_null())
            second, reasons = second.zip_with(is_wall, times.second), reasons.zip_with(is_wall, times.reason)
            reasons = add_reason(reasons, ~is_wall & pl.Series([found.is_wall_clock]), _NOT_PLACED)
        value = numbers(block[column])
        value = value.set((~value.is_finite()).fill_null(True), None)
        reasons = add_reason(reasons, value.is_null() & ~is_empty(block[column]), "value is not a number")
        reasons = add_reason(reasons, value.fill_null(0) == 0, _NO_MEASUREMENT)
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        rows = pl.DataFrame({"second": second, "value": value, "wall": is_wall, "source": source_names(block)})
        for at, number, wall, source in rows.filter(good).iter_rows():
            found.add_day_labels(at, {label: number}, is_wall_clock=wall, rank=found.rank(source))


def _noons(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(noon of each date, as if the wearer's clock showed UTC; reasons where there is none)."""
    dates = read_times(cells.str.strip_chars().str.slice(0, 10), ("%Y-%m-%d",), "UTC")
    return dates.second + DAY / 2, dates.reason
