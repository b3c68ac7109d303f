"""Reads Fitbit recordings as Fitabase exports them: narrow, wide and zipped minute files, sleep, heart rate.

The kind of a file follows from its header, never from its name. One pass over all files sorts the minutes by person
(`people`); then each person is read from their own rows (`read`).

Rules:
- METs are stored times ten. Sleep minutes may be stamped at :30 seconds; they belong to the minute they start in.
- Not worn is written as zeros. In a run of at least 6 hours in which every recorded activity channel is at rest
  (steps 0, intensity 0, MET at most 1), outside sleep and without a heart rate, the watch counts as not worn and its
  activity channels become unobserved. Where sleep was never recorded, a motionless night of 6 hours reads the same way.
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
from lsm_jax.ingest.cells import LINE, PERSON, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.minutes.series import Aggregate, minute_series
from lsm_jax.ingest.people.ids import read_ids
from lsm_jax.ingest.people.roster import Roster
from lsm_jax.ingest.reader import Evidence, PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.by_person import RowsByPerson, Slice, load_slices
from lsm_jax.ingest.tables.header import TABLE_SUFFIXES, header_names, read_header
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.orders import DateOrder, orders_of_dates
from lsm_jax.ingest.times.text import epoch_seconds

NOT_WORN_MINUTES = 360
SLEEP_GAP_MINUTES = 2
# Formats that occur in one study: the original export, and what a spreadsheet makes of it.
TIME_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
)
_MAX_AT_REST = {"steps": 0.0, "activity_intensity": 0.0, "met": 1.0}
_ACTIVITY_CHANNELS = ("steps", "activity_intensity", "met", "calories", "distance")


@dataclasses.dataclass(frozen=True)
class MinuteFile:
    """A kind of minute file: its channel and its columns."""

    channel: str
    time: str
    values: tuple[str, ...]  # one column (narrow) or sixty (wide, one per minute of the hour)
    scale: float = 1.0  # to the registry's unit
    aggregate: Aggregate | None = "last"  # of a minute that two files hold


def _kinds() -> Iterator[MinuteFile]:
    for name, channel, scale in (
        ("Steps", "steps", 1.0),
        ("Intensity", "activity_intensity", 1.0),
        ("METs", "met", 0.1),
        ("MET", "met", 0.1),
        ("Calories", "calories", 1.0),
    ):
        yield MinuteFile(channel, "ActivityMinute", (name,), scale)
        yield MinuteFile(channel, "ActivityHour", tuple(f"{name}{minute:02d}" for minute in range(60)), scale)
    yield MinuteFile("sleep_state", "date", ("value",), aggregate="max")
    yield MinuteFile("heart_rate", "Time", ("Value",), aggregate=None)


KINDS: tuple[MinuteFile, ...] = tuple(_kinds())
_CODES = {kind.channel: code for code, kind in enumerate(KINDS)}
_OTHER_FILES = {
    "ActivityDate": "daily totals, not minute data",
    "ActivityDay": "daily totals, not minute data",
    "ActivityHour": "hourly totals, not minute data",
    "SleepDay": "nightly totals, not minute data",
    "WeightKg": "a log of body weight, not minute data",
}


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Text tables with the header of a minute file."""
    text = [file for file in files if file.name.lower().endswith((".csv", ".tsv", ".txt"))]
    found = tuple(file for file in text if _kind_of(header_names(file)))
    return Evidence("Fitbit minutes as Fitabase exports them", found) if found else None


def _kind_of(names: Sequence[str]) -> MinuteFile | None:
    return next((kind for kind in KINDS if {"Id", kind.time, *kind.values} <= {*names}), None)


class FitbitReader:
    """Reader of Fitabase exports (see `reader.Reader`); keys are (raw id, slices of sorted rows)."""

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options
        self._zone = options.time_zone or ""

    def channels(self, source: Path) -> tuple[str, ...]:
        present = {kind.channel for _, kind in self._minute_files(source, IngestReport())}
        if not present:
            raise UserError(
                f"{source} holds no Fitbit minute file. Expected exports such as minuteStepsNarrow_merged.csv, "
                "minuteIntensitiesWide_merged.csv, minuteSleep_merged.csv or heartrate_seconds_merged.csv, "
                "plain or zipped, with their original header line."
            )
        return tuple(name for name in _CODES if name in present)

    def people(self, source: Path, report: IngestReport) -> Iterator[tuple[str, list[Slice]]]:
        if self._options.scratch is None:
            raise UserError("the fitbit reader needs a scratch folder (ReaderOptions.scratch).")
        samples = RowsByPerson(self._options.scratch)
        files = list(self._minute_files(source, report))
        for (file, kind), formats in zip(files, _time_formats(files, self._options.date_order), strict=True):
            report.use(file.label, f"minutes of {kind.channel}")
            with reading(file.label, report):
                for block in read_rows(file, ("Id", kind.time, *kind.values), report):
                    samples.add(_samples(block, kind, formats, self._zone, file.label, report), file.label)
        roster = Roster(self._options.people)
        for person, slices in samples.slices.items():
            roster.add([person], "recordings", slices[0].source)
        for person, spellings in roster.people(report).items():
            yield person, [piece for spelling in spellings for piece in samples.slices[spelling]]

    def person(self, key: tuple[str, list[Slice]]) -> str:
        return key[0]

    def read(self, _: Path, key: tuple[str, list[Slice]], report: IngestReport) -> PersonRecord | None:
        person, slices = key
        for piece in slices:
            report.use(piece.source)
        table = load_slices(slices)
        code, second, value = (table[name].to_numpy() for name in ("code", "second", "value"))
        series = {
            channel: minute_series(
                channel, second[code == number], value[code == number], report, aggregate=KINDS[number].aggregate
            )
            for channel, number in _CODES.items()
            if (code == number).any()
        }
        events = _sleep_events(_recorded_minutes(series["sleep_state"])) if "sleep_state" in series else ()
        worn = _without_not_worn(series, report)
        return PersonRecord(
            person,
            tuple(worn.values()),
            events,
            time_zone=self._zone,
            is_wall_clock=not self._zone,
            identity=self._options.people.identity(person),
        )

    def _minute_files(self, source: Path, report: IngestReport) -> Iterator[tuple[SourceFile, MinuteFile]]:
        """Files that hold minutes, with their kind; the others are named in the report."""
        for file in source_files(source, report, self._options.limits):
            if not file.name.lower().endswith(TABLE_SUFFIXES):
                report.ignore(file.label, "not a table")
                continue
            try:
                names = read_header(file).names
            except UnreadableFile as error:
                report.set_aside(file.label, str(error))
                continue
            if (kind := _kind_of(names)) is not None:
                yield file, kind
            elif reason := next((reason for column, reason in _OTHER_FILES.items() if column in names), None):
                report.ignore(file.label, reason)
            else:
                report.set_aside(file.label, _header_fault(names))


def _time_formats(
    files: Sequence[tuple[SourceFile, MinuteFile]], stated: DateOrder | None
) -> Iterator[tuple[str, ...]]:
    """The formats of each file's times. A file that does not tell day from month follows the others, or what is stated.

    Raises:
      UserError: no file tells, and the spelling is not that of Fitabase, which writes the month first.
    """
    orders = [_date_order(file, kind) for file, kind in files]
    told = {order for order in orders if order in ("day", "month")} or ({stated} if stated else set())
    for (file, kind), order in zip(files, orders, strict=True):
        if order == "unclear" and len(told) != 1:
            raise UserError(
                f"{file.label}: the dates in column {kind.time!r} do not tell whether day or month comes first. "
                "Say it with --date-order day or --date-order month."
            )
        is_day_first = order == "day" or (order not in told and told == {"day"})
        yield tuple(text.replace("%m/%d", "%d/%m") for text in TIME_FORMATS) if is_day_first else TIME_FORMATS


def _date_order(file: SourceFile, kind: MinuteFile) -> str:
    """ "day" or "month" first; "vendor" where only the spelling speaks for Fitabase's own order; "unclear"."""
    spelling = "vendor"
    for block in read_rows(file, (kind.time,), IngestReport()):
        cells = block[kind.time].cast(pl.String)
        if (orders := orders_of_dates(cells, "/")) and len(orders) == 1:
            return orders.pop()
        if cells.str.contains(r"^\s*(\d\d/\d\d/\d{4}[^APMapm]*$|0\d/\d\d/|\d\d/0\d/)").any():
            spelling = "unclear"
    return spelling


def _header_fault(names: Sequence[str]) -> str:
    """What the header lacks for the most similar kind."""
    similar = max(KINDS, key=lambda kind: len({"Id", kind.time, *kind.values} & set(names)) / (2 + len(kind.values)))
    missing = [name for name in ("Id", similar.time, *similar.values) if name not in names]
    return f"line 1 is no header of a Fitbit minute file; for {similar.channel} it lacks {', '.join(missing[:3])}"


def _samples(
    block: pl.DataFrame, kind: MinuteFile, formats: Sequence[str], time_zone: str, file: str, report: IngestReport
) -> pl.DataFrame:
    """A block's good rows as (PERSON, code, second, value); the others are quarantined."""
    person, _ = read_ids(block["Id"])
    second, reasons = epoch_seconds(block[kind.time], formats, time_zone)
    # A spreadsheet writes long ids as 1.50396E+09: several people would become one.
    bad_person = ~person.str.contains(r"^\d+$").fill_null(False)
    reasons = reasons.zip_with(~bad_person, pl.Series(["person id is not a whole number"]))
    values, damaged, empty = [], pl.repeat(False, len(block), eager=True), pl.repeat(True, len(block), eager=True)
    for name in kind.values:
        parsed = numbers(_with_points(block[name], file, report))
        values.append(parsed.cast(pl.Float32) * kind.scale)
        damaged |= parsed.is_null() & ~is_empty(block[name])
        empty &= parsed.is_null()
    reasons = add_reason(reasons, damaged & empty, "value is not a number")
    report.damage(kind.channel, file, block[LINE].filter(reasons.is_null() & damaged).to_list())
    good = quarantine_rows(block[LINE], reasons, file, report)

    wide = np.stack([column.filter(good).to_numpy() for column in values], axis=1)
    seconds = second.filter(good).to_numpy()[:, None] + 60 * np.arange(wide.shape[1])
    recorded = ~np.isnan(wide)
    people = person.filter(good).gather(pl.Series(np.nonzero(recorded)[0]))
    return pl.DataFrame(
        {PERSON: people, "second": seconds[recorded], "value": wide[recorded].astype(np.float32)}
    ).with_columns(code=pl.lit(_CODES[kind.channel], pl.UInt8))


def _with_points(cells: pl.Series, file: str, report: IngestReport) -> pl.Series:
    """The cells with decimal points: no minute reaches a thousand, so a comma is the decimal mark of a spreadsheet."""
    if cells.dtype == pl.String and cells.str.contains(r"^\s*\d+,\d+\s*$").any():
        report.note(f"{file}: numbers with a comma were read as decimals.")
        return cells.str.replace(",", ".", literal=True)
    return cells


def _without_not_worn(series: dict[str, Series], report: IngestReport) -> dict[str, Series]:
    """Makes the activity of a watch that is not worn missing (rule above)."""
    recorded = [series[name].minute for name in _MAX_AT_REST if name in series]
    if not recorded:
        return series
    minute = np.unique(np.concatenate(recorded))
    resting = np.ones(len(minute), bool)
    for name, maximum in _MAX_AT_REST.items():
        if name in series:
            resting &= ~np.isin(minute, series[name].minute[series[name].value > maximum + 1e-6])
    for name in ("sleep_state", "heart_rate"):
        if name in series:
            resting &= ~np.isin(minute, _recorded_minutes(series[name]))
    not_worn = minute[_long_runs(minute, resting)]
    report.not_worn_minutes += len(not_worn)
    worn = dict(series)
    for name in _ACTIVITY_CHANNELS:
        if name in series:
            value = np.where(np.isin(series[name].minute, not_worn), np.float32("nan"), series[name].value)
            worn[name] = dataclasses.replace(series[name], value=value)
    return worn


def _recorded_minutes(series: Series) -> Int[np.ndarray, " n"]:
    """The minutes that have a value; a day without one is marked by a NaN."""
    return series.minute[~np.isnan(series.value)]


def _long_runs(minute: Int[np.ndarray, " n"], resting: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether each minute is in an unbroken run of rest of at least `NOT_WORN_MINUTES`."""
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
