"""Columns that a file lacks, and ids, times and numbers of a block's rows, by the rules of a mapping."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence

import polars as pl

from lsm_jax.errors import nearest
from lsm_jax.ingest.cells import LINE, PERSON, add_reason, joined, numbers, quarantine_rows
from lsm_jax.ingest.files.source import UnreadableFile
from lsm_jax.ingest.mapping.sections import ChannelRule, FileRule
from lsm_jax.ingest.mapping.times import UNIT_SECONDS, TimeRule, Unit
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Header
from lsm_jax.ingest.times.text import UNREADABLE, Times, read_times

RELATIVE_START = int(dt.datetime(2001, 1, 1, tzinfo=dt.UTC).timestamp())  # a Monday
_WEEK = 7 * 86400
_MAX_RELATIVE = 50 * 366 * 86400  # seconds
NO_ZONE = "time zone is neither an IANA name, an offset nor one of the mapping's zones"
_NO_NUMBER = pl.Series([None], dtype=pl.Float64)


class Calendar:
    """The date of day 0 of one person's relative times.

    Without a weekday column it is Monday 2001-01-01. With one it is the day of that week with the right weekday.
    Further files of the person are put within three days of the first, so that devices started on different days stay
    together. Files without a weekday column follow the first that has one.
    """

    def __init__(self) -> None:
        self._first: int | None = None

    @property
    def shift(self) -> int:
        """Seconds from Monday 2001-01-01 to day 0."""
        return 0 if self._first is None else self._first - RELATIVE_START

    def start(self, block: pl.DataFrame, time: TimeRule) -> int:
        """Midnight of day 0, in seconds since the epoch."""
        if not time.weekday:
            return RELATIVE_START + self.shift
        days = ((numbers(block[time.weekday]) - numbers(block[time.weekday_day])) % 7).drop_nulls().mode().sort()
        if not len(days):
            return RELATIVE_START + self.shift
        start = RELATIVE_START + int(days[0]) * 86400
        if self._first is None:
            self._first = start
        return start + _WEEK * round((self._first - start) / _WEEK)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where blocks come from, and how they are read."""

    file: str  # its name in reports
    person: str | None  # None where a column holds the id; the rows then get a column PERSON
    time_zone: str  # of wall-clock times whose rule names none; "" where none is known
    calendar: Calendar
    report: IngestReport
    needs_clocks: bool  # whether rows keep what they say of their clock, since no one zone is known


def missing_columns(file: str, rule: FileRule, header: Header, report: IngestReport) -> list[str]:
    """The rule's columns that a file lacks, with what that costs in the report.

    Raises:
      UnreadableFile: no row can be read without them, or nothing is left to read.
    """
    names = header.names
    missing = [column for column in rule.used_columns if column not in names]
    lost = {column: rule.parts_with(column) for column in missing}
    parts = {part for column in rule.used_columns for part in rule.parts_with(column)}
    if missing and (not all(lost.values()) or parts <= {part for column in missing for part in lost[column]}):
        first = next((column for column in missing if not lost[column]), missing[0])
        raise UnreadableFile(
            f"line {max(header.line, 1)} lacks the column {first!r}, which {rule.section} of the mapping "
            f"names{_hint(first, names)}"
        )
    for column in missing:
        what = f"{' and '.join(lost[column])} not read: there is no column {column!r}{_hint(column, names)}"
        report.lack(what, file)
    return missing


def _hint(column: str, names: Sequence[str]) -> str:
    hint = nearest(column, names, 1)
    return f".{hint}" if hint else ""


def row_seconds(block: pl.DataFrame, time: TimeRule, origin: Origin, column: str = "") -> Times:
    """The times of the time's column, or of another column in the same format."""
    zone = time.time_zone.name if time.time_zone else origin.time_zone
    if not time.counts:
        cells = joined(block, [column] if column else time.time_columns)
        if time.time_zone and time.time_zone.column:
            return _times_by_zone(cells, time.formats, time.time_zone.zones_of(block[time.time_zone.column]))
        times = read_times(cells, time.formats, zone)
        if len(block) and not column and times.reason.eq_missing(pl.Series([UNREADABLE])).all():
            origin.report.note(
                f"{origin.file}: no time of lines {block[LINE][0]} to {block[LINE][-1]} is in the mapping's formats: "
                "time.formats says how they are written."
            )
        return times
    if time.day and not column:
        minute = numbers(block[time.minute])
        elapsed = (numbers(block[time.day]) - time.first_day) * 86400 + minute * 60
        good = minute.is_between(0, 1439.999)
    else:
        elapsed = numbers(block[column or time.time_columns[0]]) * UNIT_SECONDS[time.unit or "minutes"]
        good = elapsed.is_not_null()
    earliest = -_MAX_RELATIVE if time.zero else 0
    good = (good & elapsed.is_between(earliest, _MAX_RELATIVE)).fill_null(False)
    # Hours such as 13.38333333 are whole minutes that lost their last digits.
    second = elapsed.zip_with(good, _NO_NUMBER).round(3 if time.unit == "seconds" else 0)
    nothing = pl.repeat(None, len(block), dtype=pl.String, eager=True)
    reasons = add_reason(nothing, ~good, UNREADABLE)
    if time.relative:
        return Times(second + time.zero_seconds + origin.calendar.start(block, time), reasons, nothing)
    zero = time.zero_moment(zone)
    reasons = reasons.fill_null(zero.reason[0]) if zero.reason[0] else reasons
    return Times(second + zero.second[0], reasons, zero.clock.new_from_index(0, len(block)))


def _times_by_zone(cells: pl.Series, formats: Sequence[str], zones: pl.Series) -> Times:
    """The times of rows with a zone each ("": not known); those whose zone is null are bad."""
    parts = []
    for zone in zones.unique():
        here = zones.eq_missing(pl.Series([zone], dtype=pl.String))
        second, reason, clock = read_times(cells.filter(here), formats, zone or "")
        reason = add_reason(reason, pl.repeat(zone is None, len(reason), eager=True), NO_ZONE)
        parts.append(pl.DataFrame({"row": here.arg_true(), "second": second, "reason": reason, "clock": clock}))
    if not parts:
        return read_times(cells, formats, "")
    table = pl.concat(parts).sort("row")
    return Times(table["second"], table["reason"], table["clock"])


def good_rows(
    block: pl.DataFrame, rule: FileRule, second: pl.Series, reasons: pl.Series, origin: Origin
) -> tuple[pl.DataFrame, pl.Series]:
    """Rows with a person and without a reason against them; the others are quarantined.

    Where columns hold the ids, the rows get them as text in column `PERSON`.
    """
    if origin.person is None:
        ids, id_reasons = rule.person.of_rows(block)
        block = block.with_columns(ids.alias(PERSON))
        reasons = reasons.zip_with(reasons.is_not_null(), id_reasons)
    good = quarantine_rows(block[LINE], reasons, origin.file, origin.report)
    return block.filter(good), second.filter(good)


def durations(block: pl.DataFrame, column: str, unit: Unit) -> pl.Series:
    """Seconds of a column of numbers in this unit, or of text such as 1:30:00; null where a cell is neither."""
    seconds = numbers(block[column]) * UNIT_SECONDS[unit]
    if block[column].dtype != pl.String:
        return seconds
    parts = (
        block[column]
        .str.extract_groups(r"^\s*(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)\s*$")
        .struct.unnest()
        .cast(pl.Float64)
    )
    return seconds.zip_with(seconds.is_not_null(), parts["1"] * 3600 + parts["2"] * 60 + parts["3"])


def with_text_values(block: pl.DataFrame, column: str, rule: ChannelRule, channel: str, origin: Origin) -> pl.DataFrame:
    """The block with the words of `text_values` as numbers, which are counted in the report."""
    if not rule.text_values or block[column].dtype != pl.String:
        return block
    cells = block[column]
    words = cells.str.strip_chars().str.to_lowercase()
    for word, number in rule.text_values.items():
        found = (words == word.lower()).fill_null(False)
        origin.report.replace(
            f"{word!r} of {channel} is read as {number:g} {rule.unit}".strip(),
            origin.file,
            block[LINE].filter(found).to_list(),
        )
        cells = cells.zip_with(~found, pl.Series([str(number)]))
    return block.with_columns(cells.alias(column))
