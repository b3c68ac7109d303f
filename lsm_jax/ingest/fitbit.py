"""Fitbit recordings as Fitabase exports them: narrow, wide and zipped minute files, sleep, heart rate.

What a file is follows from its header, never from its name. One pass over all files sorts the minutes by
person (`people`); then a person is read from their own slices (`read`).

Rules:
- METs are stored times ten. Sleep minutes may stand at :30 seconds; they belong to the minute they start in.
- Not worn is written as zeros. A run of at least 6 hours in which every activity channel recorded rests
  (steps 0, intensity 0, MET at most 1) outside sleep and without a heart rate counts as not worn, and its
  activity channels become unobserved. Where sleep was never recorded, a motionless night of 6 hours reads
  the same way.
- A run of sleep minutes with gaps of at most 2 minutes is one event of kind "sleep".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from lsm_jax.errors import UserError
from lsm_jax.ingest.base import ReaderOptions
from lsm_jax.ingest.files import Refused, SourceFile, source_files
from lsm_jax.ingest.parse import checked_zone, epoch_seconds, is_empty, numbers
from lsm_jax.ingest.record import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import LINE, TABLE_SUFFIXES, header, rows
from lsm_jax.ingest.sampling import Aggregate, minute_series
from lsm_jax.ingest.spill import PERSON, Piece, Spill, load

NOT_WORN_MINUTES = 360
SLEEP_GAP_MINUTES = 2
# The spellings of one study: the original export, and what a spreadsheet makes of it.
TIME_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
)
_AT_REST = {"steps": 0.0, "activity_intensity": 0.0, "met": 1.0}
_NOT_WORN = ("steps", "activity_intensity", "met", "calories", "distance")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of minute file.

    Attributes:
      channel: what its values are.
      time: its time column.
      values: its value columns, one (narrow) or sixty (wide, one per minute of the hour).
      scale: value times this is in the registry's unit.
      aggregate: how several samples in a minute become one.
    """

    channel: str
    time: str
    values: tuple[str, ...]
    scale: float = 1.0
    aggregate: Aggregate = "mean"


def _kinds() -> Iterator[Kind]:
    for name, channel, scale in (
        ("Steps", "steps", 1.0),
        ("Intensity", "activity_intensity", 1.0),
        ("METs", "met", 0.1),
        ("MET", "met", 0.1),
        ("Calories", "calories", 1.0),
    ):
        yield Kind(channel, "ActivityMinute", (name,), scale)
        yield Kind(channel, "ActivityHour", tuple(f"{name}{minute:02d}" for minute in range(60)), scale)
    yield Kind("sleep_state", "date", ("value",), aggregate="max")
    yield Kind("heart_rate", "Time", ("Value",))


KINDS: tuple[Kind, ...] = tuple(_kinds())
_CODES = {kind.channel: code for code, kind in enumerate(KINDS)}
_OTHER_FILES = {
    "ActivityDate": "daily totals, not minute data",
    "ActivityDay": "daily totals, not minute data",
    "ActivityHour": "hourly totals, not minute data",
    "SleepDay": "nightly totals, not minute data",
    "WeightKg": "a log of body weight, not minute data",
}


class FitbitReader:
    """Reader of Fitabase exports (see `readers.base.Reader`); keys are (raw id, pieces)."""

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options
        self._zone = checked_zone(options.time_zone or "UTC", "--time-zone")

    def channels(self, source: Path) -> tuple[str, ...]:
        present = {kind.channel for _, kind in self._minute_files(source, IngestReport())}
        if not present:
            raise UserError(
                f"{source} holds no Fitbit minute file. Expected exports such as minuteStepsNarrow_merged.csv, "
                "minuteIntensitiesWide_merged.csv, minuteSleep_merged.csv or heartrate_seconds_merged.csv, "
                "plain or zipped, with their original header line."
            )
        return tuple(name for name in _CODES if name in present)

    def people(self, source: Path, report: IngestReport) -> Iterator[tuple[str, tuple[Piece, ...]]]:
        if self._options.scratch is None:
            raise UserError("the fitbit reader needs a scratch folder (ReaderOptions.scratch).")
        spill = Spill(self._options.scratch)
        for file, kind in self._minute_files(source, report):
            for block in rows(file, ("Id", kind.time, *kind.values), report, self._options.limits):
                spill.add(_samples(block, kind, file.label, self._zone, report))
        for person in sorted(spill.pieces):
            yield person, tuple(spill.pieces[person])

    def read(self, _: Path, key: tuple[str, tuple[Piece, ...]], report: IngestReport) -> PersonRecord | None:
        person, pieces = key
        table = load(pieces)
        code, second, value = (table[name].to_numpy() for name in ("code", "second", "value"))
        series = {}
        for channel, number in _CODES.items():
            mine = code == number
            if mine.any():
                series[channel] = minute_series(
                    channel, second[mine], value[mine], report, aggregate=KINDS[number].aggregate
                )
        asleep = _seen(series["sleep_state"]) if "sleep_state" in series else np.empty(0, np.int64)
        worn = _without_not_worn(series, report)
        return PersonRecord(person, tuple(worn.values()), _sleep_events(asleep), {}, self._zone)

    def _minute_files(self, source: Path, report: IngestReport) -> Iterator[tuple[SourceFile, Kind]]:
        """Files that hold minutes, with their kind; the others are named in the report."""
        for file in source_files(source, report, self._options.limits):
            if not file.name.lower().endswith(TABLE_SUFFIXES):
                report.ignore(file.label, "not a table")
                continue
            try:
                names = header(file, self._options.limits).names
            except Refused as refusal:
                report.set_aside(file.label, str(refusal))
                continue
            kind = next((kind for kind in KINDS if {"Id", kind.time, *kind.values} <= set(names)), None)
            if kind is not None:
                yield file, kind
            elif known := next((what for column, what in _OTHER_FILES.items() if column in names), None):
                report.ignore(file.label, known)
            else:
                report.set_aside(file.label, _header_fault(names))


def _header_fault(names: Sequence[str]) -> str:
    """What is missing from the header for the kind it comes nearest to."""
    nearest = max(KINDS, key=lambda kind: len({"Id", kind.time, *kind.values} & set(names)) / (2 + len(kind.values)))
    missing = [name for name in ("Id", nearest.time, *nearest.values) if name not in names]
    return f"line 1 is no header of a Fitbit minute file; for {nearest.channel} it lacks {', '.join(missing[:3])}"


def _samples(block: pl.DataFrame, kind: Kind, file: str, time_zone: str, report: IngestReport) -> pl.DataFrame:
    """A block's good rows as (PERSON, code, second, value); the others are quarantined."""
    person = block["Id"].cast(pl.String).str.strip_chars()
    second, reason = epoch_seconds(block[kind.time], TIME_FORMATS, time_zone)
    # A spreadsheet writes long ids as 1.50396E+09: several people would become one.
    bad_person = ~person.str.contains(r"^\d+$").fill_null(False)
    reason = reason.zip_with(~bad_person, pl.Series(["person id is not a whole number"]))
    values, damaged, empty = [], pl.repeat(False, len(block), eager=True), pl.repeat(True, len(block), eager=True)
    for name in kind.values:
        cells = block[name]
        parsed = numbers(cells)
        missing = is_empty(cells)
        values.append(parsed.cast(pl.Float32) * kind.scale)
        damaged |= parsed.is_null() & ~missing
        empty &= parsed.is_null()
    reason = reason.zip_with(reason.is_not_null() | ~(damaged & empty), pl.Series(["value is not a number"]))
    _report_rows(block[LINE], reason, damaged & ~empty, kind.channel, file, report)

    good = reason.is_null()
    wide = np.stack([column.filter(good).to_numpy() for column in values], axis=1)
    seconds = second.filter(good).to_numpy()[:, None] + 60 * np.arange(wide.shape[1])
    recorded = ~np.isnan(wide)
    people = person.filter(good).gather(pl.Series(np.nonzero(recorded)[0]))
    return pl.DataFrame(
        {PERSON: people, "second": seconds[recorded], "value": wide[recorded].astype(np.float32)}
    ).with_columns(code=pl.lit(_CODES[kind.channel], pl.UInt8))


def _report_rows(
    line: pl.Series, reason: pl.Series, partly: pl.Series, channel: str, file: str, report: IngestReport
) -> None:
    kept = reason.is_null()
    report.rows_kept += int(kept.sum())
    report.damage(channel, file, line.filter(kept & partly).to_list())
    for (why,), group in pl.DataFrame({"line": line, "why": reason}).drop_nulls("why").group_by("why"):
        report.quarantine(str(why), file, group["line"].to_list())


def _without_not_worn(series: dict[str, Series], report: IngestReport) -> dict[str, Series]:
    """Takes activity minutes out that are zeros of a watch lying on the table (rule above)."""
    recorded = [series[name].minute for name in _AT_REST if name in series]
    if not recorded:
        return series
    minute = np.sort(np.concatenate(recorded), kind="stable")
    minute = minute[np.diff(minute, prepend=minute[0] - 1) > 0]
    resting = np.ones(len(minute), bool)
    for name, most in _AT_REST.items():
        if name in series:
            moved = series[name].minute[series[name].value > most + 1e-6]
            resting &= ~_is_in(minute, moved)
    for name in ("sleep_state", "heart_rate"):
        if name in series:
            resting &= ~_is_in(minute, _seen(series[name]))
    not_worn = minute[_long_runs(minute, resting)]
    report.not_worn_minutes += len(not_worn)
    kept = dict(series)
    for name in _NOT_WORN:
        if name in series:
            missing = _is_in(series[name].minute, not_worn)
            kept[name] = dataclasses.replace(
                series[name], value=np.where(missing, np.float32("nan"), series[name].value)
            )
    return kept


def _seen(series: Series) -> Int[np.ndarray, " n"]:
    """The minutes that have a value: a lost day is marked by a NaN."""
    return series.minute[~np.isnan(series.value)]


def _is_in(minute: Int[np.ndarray, " n"], others: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " n"]:
    return np.isin(minute, others, assume_unique=True)


def _long_runs(minute: Int[np.ndarray, " n"], resting: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Marks minutes in unbroken runs of rest of at least `NOT_WORN_MINUTES`."""
    breaks = np.flatnonzero((np.diff(minute) != 1) | (resting[1:] != resting[:-1])) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(starts, append=len(minute))
    return np.repeat(resting[starts] & (lengths >= NOT_WORN_MINUTES), lengths)


def _sleep_events(minute: Int[np.ndarray, " n"]) -> tuple[RecordEvent, ...]:
    if not len(minute):
        return ()
    breaks = np.flatnonzero(np.diff(minute) > SLEEP_GAP_MINUTES + 1)
    starts = minute[np.concatenate([[0], breaks + 1])]
    ends = minute[np.append(breaks, len(minute) - 1)] + 1
    return tuple(RecordEvent("sleep", "asleep", int(a), int(b)) for a, b in zip(starts, ends, strict=True))
