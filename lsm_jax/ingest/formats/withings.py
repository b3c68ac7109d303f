"""Reads the export of a Withings account: watches, bands, sleep mats, scales, blood pressure monitors.

The files `raw_DEVICE_QUANTITY.csv` hold arrays in their cells: in a row that starts at 10:00, the durations [60,120]
and the values [7,9] say 7 from 10:00 and 9 from 10:01.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, numbers, quarantine_rows
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.sleep import SLEEP_CHANNELS, Spell, Stage
from lsm_jax.ingest.reader import Evidence, RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import header_names
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import FLOATING
from lsm_jax.ingest.times.text import ISO_FORMATS, Times, read_times

_RAW_COLUMNS = ("start", "duration", "value")
_CHANNELS = {
    "hr": "heart_rate",
    "heart-rate": "heart_rate",
    "steps": "steps",
    "distance": "distance",
    "calories-earned": "active_calories",
    "respiratory-rate": "respiratory_rate",
    "spo2": "spo2",
    "auto-spo2": "spo2",
}
_SLEEP_STATE = "sleep-state"
_ACTIVITY = "Activity type"
_STAGES: dict[int, Stage] = {0: "awake", 1: "light", 2: "deep", 3: "rem"}
_STAGES_OF_MONITOR: dict[int, Stage] = {0: "awake", 1: "asleep"}  # the older sleep mat
_LB = 0.45359237
_LONGEST_ROW = 7 * 86400  # s


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Raw files with the columns start, duration, value."""
    found = tuple(file for file in files if _quantity(file) and {*_RAW_COLUMNS} <= {*header_names(file)})
    return Evidence("Withings account export", found) if found else None


def _quantity(file: SourceFile) -> str:
    """What a raw file measured; "" for other files."""
    match = re.fullmatch(r"raw_[^_]+_(.+)\.csv", file.name.lower())
    return match.group(1).replace("_", "-") if match else ""


class WithingsReader(RecordingReader):
    """Reader of Withings exports (see `reader.Reader`)."""

    content = "Withings file"
    expected = "raw_tracker_hr.csv, raw_tracker_steps.csv, raw_tracker_sleep-state.csv and so on"

    def reads(self, file: SourceFile) -> str:
        if (quantity := _quantity(file)) in (*_CHANNELS, _SLEEP_STATE):
            return "" if {*_RAW_COLUMNS} <= {*header_names(file)} else "lacks the columns start, duration, value"
        if quantity:
            return f"no channel for {quantity}"
        return "" if _spells_of(file) or _labels_of(file) else "not a file of Withings that is read"

    def channels_of(self, file: SourceFile) -> Sequence[str]:
        quantity = _quantity(file)
        if quantity == _SLEEP_STATE:
            return SLEEP_CHANNELS
        return (_CHANNELS[quantity],) if quantity else ()

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        if quantity := _quantity(file):
            for block in read_rows(file, _RAW_COLUMNS, report):
                self._add_raw(block, quantity, file, recording, report)
        elif columns := _spells_of(file):
            for block in read_rows(file, columns, report):
                self._add_spells(block, columns, file, recording, report)
        else:
            labels = _labels_of(file)
            for block in read_rows(file, ("Date", *labels), report):
                self._add_labels(block, labels, file, recording, report)

    def _times(self, cells: pl.Series, recording: Recording) -> Times:
        times = read_times(cells, ISO_FORMATS, self._options.time_zone or "")
        recording.add_clocks(times)
        return times

    def _add_raw(
        self, block: pl.DataFrame, quantity: str, file: SourceFile, recording: Recording, report: IngestReport
    ) -> None:
        """The samples of a raw file."""
        second, reasons, _ = self._times(block["start"], recording)
        arrays = block.select(
            pl.col("duration", "value").str.strip_chars("[] ").str.split(",").list.eval(_as_number(pl.element()))
        )
        uneven = arrays["duration"].list.len() != arrays["value"].list.len()
        reasons = add_reason(reasons, uneven.fill_null(True), "duration and value have different lengths")
        damaged = arrays.select(pl.any_horizontal(pl.all().list.eval(pl.element().is_null()).list.any())).to_series()
        reasons = add_reason(reasons, damaged.fill_null(True), "value is not a number")
        possible = (arrays["duration"].list.min() >= 0) & (arrays["duration"].list.sum() <= _LONGEST_ROW)
        reasons = add_reason(reasons, ~possible.fill_null(False), "duration is not from 0 to 7 days")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        samples = arrays.with_columns(second=second, row=block[LINE]).filter(good).explode("duration", "value")
        start = pl.col("second") + pl.col("duration").cum_sum().over("row") - pl.col("duration")
        samples = samples.select(start.alias("second"), "duration", "value")
        if quantity == _SLEEP_STATE:
            stages = _STAGES_OF_MONITOR if "sleep-monitor" in file.name.lower() else _STAGES
            recording.add_spells(
                Spell(begin, begin + length, stages[state])
                for begin, length, state in samples.iter_rows()
                if state in stages
            )
            return
        begins, lengths, values = (samples[name].to_list() for name in ("second", "duration", "value"))
        recording.add(_CHANNELS[quantity], begins, values, length=lengths, sensor=file.name)

    def _add_spells(
        self, block: pl.DataFrame, columns: Sequence[str], file: SourceFile, recording: Recording, report: IngestReport
    ) -> None:
        """Nights in bed, and activities."""
        start, reasons, _ = self._times(block[columns[0]], recording)
        end, end_reasons, _ = self._times(block[columns[1]], recording)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end < start).fill_null(False), "ends before it starts")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        if _ACTIVITY not in block.columns:
            times = pl.DataFrame({"start": start, "end": end}).filter(good)
            recording.add_spells(Spell(begin, stop, "in bed") for begin, stop in times.iter_rows())
            return
        names = block[_ACTIVITY].fill_null("activity")
        for begin, stop, name in pl.DataFrame({"start": start, "end": end, "name": names}).filter(good).iter_rows():
            recording.add_event(RecordEvent("activity", name.lower()[:64], begin / 60, stop / 60))

    def _add_labels(
        self,
        block: pl.DataFrame,
        labels: Mapping[str, tuple[str, float]],
        file: SourceFile,
        recording: Recording,
        report: IngestReport,
    ) -> None:
        """Weights and blood pressures."""
        times = self._times(block["Date"], recording)
        columns = {column: numbers(block[column]) * scale for column, (_, scale) in labels.items()}
        nothing = pl.select(pl.all_horizontal(column.is_null() for column in columns.values())).to_series()
        reasons = add_reason(times.reason, nothing, "value is not a number")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        table = pl.DataFrame({"second": times.second, "clock": times.clock, **columns}).filter(good)
        for row in table.iter_rows(named=True):
            found = {labels[name][0]: row[name] for name in columns if row[name] is not None}
            recording.add_day_labels(row["second"], found, is_wall_clock=row["clock"] == FLOATING)


def _as_number(cells: pl.Expr) -> pl.Expr:
    return cells.str.strip_chars().cast(pl.Float64, strict=False)


def _spells_of(file: SourceFile) -> tuple[str, ...]:
    """The columns of a table of nights (start, end) or of activities (and the type); none for other files.

    The names of the other columns are in the language of the account.
    """
    names = header_names(file)
    if file.name.lower() == "sleep.csv" and "rem (s)" in names:
        return names[:2]
    return (*names[:2], _ACTIVITY) if file.name.lower() == "activities.csv" and _ACTIVITY in names else ()


def _labels_of(file: SourceFile) -> dict[str, tuple[str, float]]:
    """Column -> (label of the day, scale) of a table of weights or blood pressures; none for other files."""
    names = header_names(file)
    if file.name.lower() == "weight.csv" and names[:1] == ("Date",) and len(names) > 1:
        scale = 1.0 if names[1].endswith("(kg)") else _LB if names[1].endswith("(lb)") else 0
        return {names[1]: ("weight_kg", scale)} if scale else {}
    if file.name.lower() == "bp.csv" and names[:1] == ("Date",) and len(names) > 3:
        return {names[2]: ("systolic_mmhg", 1.0), names[3]: ("diastolic_mmhg", 1.0)}
    return {}
