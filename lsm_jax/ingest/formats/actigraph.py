"""Reads epoch files of ActiLife (ActiGraph): ten lines about the device, a header line, and the counts of each epoch.

The clock is the device's own. Where the rows have no date and time, they follow each other from the start that the
first lines tell. A count of zero is kept: whether the device was worn is not in these files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.cells import LINE, add_reason, is_empty, joined, numbers, quarantine_rows
from lsm_jax.ingest.files.opening import first_bytes
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.reader import Evidence, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Layout, read_header
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.orders import DateOrder, date_order, starts_with_day_or_month
from lsm_jax.ingest.times.text import ISO_FORMATS, epoch_seconds

_LAYOUT = Layout(columns=("Axis1",))
_AXES = ("Axis1", "Axis2", "Axis3")
_CHANNELS = {"Axis1": "activity_count", "Steps": "steps", "HR": "heart_rate", "Lux": "ambient_light"}
_COLUMNS = (*_AXES, "Steps", "HR", "Lux")
_TIME_COLUMNS = (("Date", "Time"), ("Timestamp",), ("TimeStamp",), ("timestamp",))
_MARK = re.compile(r"Data (Table )?File Created By", re.IGNORECASE)
_CLOCKS = ("%H:%M:%S%.f", "%I:%M:%S %p", "%H:%M")
_DATES = {"day": ("%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y"), "month": ("%m/%d/%Y", "%m-%d-%Y", "%m.%d.%Y")}
_ISO_DATES = ("%Y-%m-%d", "%Y/%m/%d")
_MIN_IDLE_MINUTES = 60


@dataclasses.dataclass(frozen=True)
class Preamble:
    """What the first lines of a file tell."""

    epoch_seconds: float
    start: str  # date and time
    order: DateOrder | None  # of day and month in its date format; None where the format is not told


def _preamble(file: SourceFile) -> Preamble:
    """Reads the first lines.

    Raises:
      UnreadableFile: not of ActiLife, or raw acceleration.
    """
    text = first_bytes(file).decode("utf-8", "replace")
    if not _MARK.search(text):
        raise UnreadableFile("not a file of ActiLife")

    def told(pattern: str) -> str:
        match = re.search(pattern, text, re.MULTILINE)
        return match.group(1) if match else ""

    period = told(r"^\W*(?:Epoch|Window) (?:Period|Length) \(hh:mm:ss\) (\d{1,2}:\d{1,2}:\d{1,2})\b")
    epoch = [float(part) for part in period.split(":") if part]
    seconds = sum(part * unit for part, unit in zip(epoch, (3600, 60, 1), strict=False))
    if not seconds:
        raise UnreadableFile("no epoch period, or one of 0 seconds: raw acceleration. Export epochs from ActiLife")
    fields = re.findall("[dMy]", told(r"date format ([dMy./-]+)"))
    first = fields[0] if fields else ""
    date, time = told(r"^\W*Start Date:? ([^\s,]+)"), told(r"^\W*Start Time:? ([^,\r\n]+)")
    start = f"{date} {time.strip()}"
    return Preamble(seconds, start, {"d": "day", "M": "month"}.get(first))  # type: ignore[arg-type]


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Text that says ActiLife made it."""
    named = [file for file in files if file.name.lower().endswith((".csv", ".txt"))]
    found = tuple(file for file in named if _MARK.search(first_bytes(file, 256).decode("utf-8", "replace")))
    return Evidence("ActiGraph epochs as ActiLife exports them", found) if found else None


class ActigraphReader(RecordingReader):
    """Reader of ActiLife's epoch files (see `reader.Reader`)."""

    content = "ActiGraph file"
    expected = "CSV files of epochs that start with 'Data File Created By ActiGraph', with a header line (Axis1, ...)"
    one_file_each = True

    def person_of(self, file: SourceFile, source: Path) -> str:
        """ActiLife adds the date and the epoch to the name of a subject: `P01 (2014-11-12)60sec.csv`."""
        return re.sub(r"\s*\(\d{4}-\d\d-\d\d\).*$", "", super().person_of(file, source))

    def reads(self, file: SourceFile) -> str:
        return "" if looks_like([file]) else "does not say that ActiLife made it"

    def channels_of(self, file: SourceFile) -> Sequence[str]:
        try:
            names = read_header(file, _LAYOUT).names
        except UnreadableFile:
            return ()
        vector = ("activity_count_vector",) if {*_AXES} <= {*names} else ()
        return (*(channel for column, channel in _CHANNELS.items() if column in names), *vector)

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        table = _EpochTable(file, self._options.time_zone or "", self._options.date_order)
        recording.is_wall_clock = not self._options.time_zone
        blocks = [block for block in table.blocks(report) if len(block)]
        if not blocks:
            return
        epochs = pl.concat(blocks)
        length = [table.preamble.epoch_seconds] * len(epochs)
        for column, channel in _CHANNELS.items():
            if column in epochs.columns:
                value = epochs[column].fill_null(math.nan)
                if column == "HR":  # 0 without a chest strap
                    report.invalid[channel] += int((value == 0).sum())
                    value = value.set(value == 0, math.nan)
                recording.add(channel, epochs["second"].to_list(), value.to_list(), length=length, sensor=file.label)
        axes = {axis: _axis_minutes(epochs, axis, table.preamble.epoch_seconds) for axis in _AXES if axis in epochs}
        if len(axes) == len(_AXES):
            recording.finished.append(_vector_magnitude([*axes.values()]))
        if idle := _idle_minutes(axes["Axis1"]):
            report.note(
                f"{file.label}: {idle:,} minutes are in runs of {_MIN_IDLE_MINUTES} minutes or more without a count. "
                "They are kept as 0, since the file does not say whether the device was worn."
            )


class _EpochTable:
    """The rows of one file.

    Raises:
      UnreadableFile: not epochs, or no header line.
      UserError: the order of day and month is not told.
    """

    def __init__(self, file: SourceFile, time_zone: str, stated: DateOrder | None) -> None:
        self._file, self._zone = file, time_zone
        self.preamble = _preamble(file)
        self._header = read_header(file, _LAYOUT)
        if "Axis1" not in self._header.names:
            raise UnreadableFile(
                "no header line with Axis1: export it again with column names, or read it with --format table and "
                "header = false"
            )
        self._columns = [name for name in _COLUMNS if name in self._header.names]
        self._time = next((names for names in _TIME_COLUMNS if {*names} <= {*self._header.names}), ())
        order = self.preamble.order or self._order_of_dates() or stated
        if order is None and self._has_ambiguous_dates():
            raise UserError(
                f"{file.label}: its dates do not tell whether the day or the month comes first, and line 1 names no "
                "date format. Say it with --date-order day or --date-order month."
            )
        self._formats = [f"{date} {clock}" for date in (*_ISO_DATES, *_DATES.get(order or "", ())) for clock in _CLOCKS]
        self._formats += ISO_FORMATS

    def blocks(self, report: IngestReport) -> Iterator[pl.DataFrame]:
        """The good rows: `second` and the columns of numbers, null where a cell is empty or no number."""
        for block in read_rows(self._file, (*self._time, *self._columns), report, _LAYOUT):
            second, reasons = self._seconds(block)
            table = block.select(
                pl.lit(second).alias("second"), *(numbers(block[name]).alias(name) for name in self._columns)
            )
            damaged = {name: table[name].is_null() & ~is_empty(block[name]) for name in self._columns}
            reasons = add_reason(reasons, damaged["Axis1"], "value is not a number")
            good = quarantine_rows(block[LINE], reasons, self._file.label, report)
            for name, is_damaged in damaged.items():
                lines = block[LINE].filter(is_damaged & good).to_list()
                report.damage(_CHANNELS.get(name, "activity_count_vector"), self._file.label, lines)
            yield table.filter(good)

    def _seconds(self, block: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """(seconds since the epoch, reasons where there are none)."""
        if self._time:
            return epoch_seconds(joined(block, self._time), self._formats, self._zone)
        start, reason = epoch_seconds(pl.Series([self.preamble.start]), self._formats, self._zone)
        if reason[0]:
            raise UnreadableFile("Start Date and Start Time do not fit the date format of line 1")
        row = block[LINE] - self._header.line - 1
        return start[0] + row * self.preamble.epoch_seconds, pl.repeat(None, len(block), dtype=pl.String, eager=True)

    def _dates(self) -> Iterator[pl.Series]:
        yield pl.Series([self.preamble.start])
        if self._time:
            column = self._time[0]
            for block in read_rows(self._file, (column,), IngestReport(), _LAYOUT):
                yield block[column] + " "  # as if a time followed

    def _order_of_dates(self) -> DateOrder | None:
        return date_order(self._dates())

    def _has_ambiguous_dates(self) -> bool:
        return any(starts_with_day_or_month(cells) for cells in self._dates())


def _axis_minutes(epochs: pl.DataFrame, axis: str, epoch_seconds: float) -> Series:
    """The counts per minute of one axis, in order of time, without minutes of which nothing is known."""
    second, value = epochs["second"].to_numpy(), epochs[axis].fill_null(math.nan).to_numpy()
    length = np.full(len(second), epoch_seconds)
    made = minute_series("activity_count", second, value, IngestReport(), length=length)
    recorded = ~np.isnan(made.value)
    return Series(made.channel, made.minute[recorded], made.value[recorded])


def _vector_magnitude(axes: Sequence[Series]) -> Series:
    """The length of the vector of the axes' counts per minute, as ActiLife computes it for epochs of a minute."""
    minute = functools.reduce(np.intersect1d, (axis.minute for axis in axes))
    counts = [axis.value[np.searchsorted(axis.minute, minute)] for axis in axes]
    return Series("activity_count_vector", minute, np.linalg.norm(counts, axis=0).astype(np.float32))


def _idle_minutes(counts: Series) -> int:
    """The minutes in long unbroken runs of zeros."""
    idle = counts.minute[counts.value == 0]
    runs = np.split(idle, np.flatnonzero(np.diff(idle) != 1) + 1)
    return sum(len(run) for run in runs if len(run) >= _MIN_IDLE_MINUTES)
