"""Blocks of rows, understood by a mapping's rules: good rows become samples, events or labels."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import polars as pl

from lsm_jax.ingest.mapping import (
    OPERATORS,
    RELATIVE_UNITS,
    ChannelRule,
    Condition,
    EventRule,
    FileRule,
    LabelRule,
    TableRule,
    TimeRule,
)
from lsm_jax.ingest.parse import UNREADABLE, epoch_seconds, is_empty, numbers
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import LINE
from lsm_jax.ingest.spill import PERSON

RELATIVE_START = int(dt.datetime(2001, 1, 1, tzinfo=dt.UTC).timestamp())  # a Monday
NAME_LENGTH = 64
_WEEK = 7 * 86400
_LONGEST_RELATIVE = 50 * 366 * 86400  # seconds
_FLAGS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}
_NO_TEXT = pl.Series([None], dtype=pl.String)
_NO_NUMBER = pl.Series([None], dtype=pl.Float64)


class Calendar:
    """Where day 0 of one person's relative times lies.

    Without a weekday it is Monday 2001-01-01. With one, the day of that week with the right weekday; further files
    of the person are put within three days of the first, so that devices started on different days stay together.
    Files that tell no weekday follow the first that does.
    """

    def __init__(self) -> None:
        self._first: int | None = None

    @property
    def moved(self) -> int:
        """Seconds from the Monday to day 0."""
        return 0 if self._first is None else self._first - RELATIVE_START

    def start(self, block: pl.DataFrame, time: TimeRule) -> int:
        """Second since the epoch of day 0's midnight."""
        if not time.weekday:
            return RELATIVE_START + self.moved
        told = ((numbers(block[time.weekday]) - numbers(block[time.weekday_day])) % 7).drop_nulls().mode().sort()
        if not len(told):
            return RELATIVE_START + self.moved
        start = RELATIVE_START + int(told[0]) * 86400
        if self._first is None:
            self._first = start
        return start + _WEEK * round((self._first - start) / _WEEK)


def sample_rows(
    block: pl.DataFrame,
    rule: TableRule,
    index: int,
    file: str,
    person: str | None,
    time_zone: str,
    calendar: Calendar,
    report: IngestReport,
) -> pl.DataFrame:
    """A table's good rows, one per channel: rule, channel, sensor, second, value (NaN: not valid), invalid.

    Column `PERSON` is added where `person` is None, that is where a column tells it.
    """
    second, reason = _seconds(block, rule, time_zone, calendar)
    if rule.signal:
        known = block[rule.signal].cast(pl.String).is_in([channel.signal for channel in rule.channels])
        known = known.fill_null(False)
        report.rows_ignored += int((~known).sum())
        block, second, reason = block.filter(known), second.filter(known), reason.filter(known)
    reason = _first_reason(reason, _damaged_values(block, rule, file, reason, report), "value is not a number")
    block, second = _good_rows(block, rule, file, person, second, reason, report)
    sensor = block[rule.sensor] if rule.sensor else pl.repeat(file, len(block), eager=True)
    shared = {"sensor": sensor.cast(pl.String).fill_null("").hash(), "second": second}
    if person is None:
        shared[PERSON] = _ids(block, rule)
    return pl.concat(
        [_channel_rows(block, rule, channel, shared, (index, number)) for number, channel in enumerate(rule.channels)]
    )


def event_rows(
    block: pl.DataFrame,
    rule: EventRule,
    file: str,
    person: str | None,
    time_zone: str,
    calendar: Calendar,
    report: IngestReport,
) -> pl.DataFrame:
    """Good event rows: kind, name, start and end in epoch minutes; `PERSON` as in `sample_rows`."""
    second, reason = _seconds(block, rule, time_zone, calendar)
    end = _minute(second) + rule.minutes
    if rule.end:
        last, unreadable = _seconds(block, rule, time_zone, calendar, column=rule.end)
        reason = reason.zip_with(reason.is_not_null(), unreadable)
        reason = _first_reason(reason, (last < second).fill_null(False), "ends before it starts")
        end = _minute(last)
    name = pl.repeat(rule.name, len(block), eager=True)
    if rule.name_column:
        name = block[rule.name_column].cast(pl.String).str.strip_chars().str.to_lowercase().str.slice(0, NAME_LENGTH)
    block = block.with_columns(__end__=end, __name__=name.fill_null(rule.name))
    block, second = _good_rows(block, rule, file, person, second, reason, report)
    frame = pl.DataFrame({"name": block["__name__"], "start": _minute(second), "end": block["__end__"]})
    frame = frame.with_columns(kind=pl.lit(rule.kind))
    return frame if person is not None else frame.with_columns(_ids(block, rule).alias(PERSON))


def add_labels(
    block: pl.DataFrame,
    rule: LabelRule,
    file: str,
    person: str | None,
    labels: dict[str, dict[str, float | str]],
    report: IngestReport,
) -> None:
    """Puts the labels of a block's people into `labels`; a later row of a person goes before an earlier one."""
    ids = _ids(block, rule) if person is None else pl.repeat(person, len(block), eager=True)
    report.quarantine("no person id", file, block[LINE].filter(ids.is_null()).to_list())
    report.rows_kept += int(ids.is_not_null().sum())
    for who, row in zip(ids, block.iter_rows(named=True), strict=True):
        if who is not None:
            found = {name: _label(row[column]) for name, column in rule.labels}
            labels.setdefault(who, {}).update({name: value for name, value in found.items() if value is not None})


def _channel_rows(
    block: pl.DataFrame, rule: TableRule, channel: ChannelRule, shared: dict[str, pl.Series], place: tuple[int, int]
) -> pl.DataFrame:
    value = _decimal(block, channel.column, rule.decimal) * channel.scale + channel.offset
    mine = block[rule.signal].cast(pl.String) == channel.signal if rule.signal else value.is_not_null()
    valid = _passes(block, (*rule.keep, *channel.keep), rule.decimal)
    columns = shared | {"value": value.zip_with(valid, _NO_NUMBER).fill_null(float("nan")), "invalid": ~valid}
    return (
        pl.DataFrame(columns)
        .filter(mine)
        .with_columns(
            pl.col("value").cast(pl.Float32),
            rule=pl.lit(place[0], pl.UInt16),
            channel=pl.lit(place[1], pl.UInt16),
        )
    )


def _seconds(
    block: pl.DataFrame, rule: TableRule | EventRule, time_zone: str, calendar: Calendar, column: str = ""
) -> tuple[pl.Series, pl.Series]:
    """(UTC seconds, reason where there are none) of the time's column, or of another one written like it."""
    time = rule.time
    column = column or time.column
    if not time.relative:
        return epoch_seconds(block[column], time.formats, time.time_zone or time_zone)
    if time.day and column == time.column:
        minute = _decimal(block, time.minute, rule.decimal)
        passed = (_decimal(block, time.day, rule.decimal) - time.first_day) * 86400 + minute * 60
        good = minute.is_between(0, 1439.999)
    else:
        passed = _decimal(block, column, rule.decimal) * RELATIVE_UNITS[time.unit or "minutes"]
        good = passed.is_not_null()
    good = (good & passed.is_between(0, _LONGEST_RELATIVE)).fill_null(False)
    # Hours such as 13.38333333 are whole minutes that lost their last digits.
    second = passed.zip_with(good, _NO_NUMBER).round(3 if time.unit == "seconds" else 0) + calendar.start(block, time)
    no_reason = pl.repeat(None, len(block), dtype=pl.String, eager=True)
    return second, _first_reason(no_reason, ~good, UNREADABLE)


def _minute(second: pl.Series) -> pl.Series:
    return (second // 60).cast(pl.Int64)


def _damaged_values(
    block: pl.DataFrame, rule: TableRule, file: str, reason: pl.Series, report: IngestReport
) -> pl.Series:
    """Rows in which no cell is a number and some cell is not empty; damaged cells of other rows are counted."""
    spoilt, readable = pl.repeat(False, len(block), eager=True), pl.repeat(False, len(block), eager=True)
    damaged: dict[str, pl.Series] = {}
    for column in dict.fromkeys(channel.column for channel in rule.channels):
        parsed = _decimal(block, column, rule.decimal)
        damaged[column] = parsed.is_null() & ~is_empty(block[column])
        spoilt |= damaged[column]
        readable |= parsed.is_not_null()
    for column, where in damaged.items():
        name = next(channel.channel for channel in rule.channels if channel.column == column)
        report.damage(name, file, block[LINE].filter(where & readable & reason.is_null()).to_list())
    return spoilt & ~readable


def _good_rows(
    block: pl.DataFrame,
    rule: TableRule | EventRule,
    file: str,
    person: str | None,
    second: pl.Series,
    reason: pl.Series,
    report: IngestReport,
) -> tuple[pl.DataFrame, pl.Series]:
    """Rows with a person and without a reason against them; the others are quarantined."""
    if person is None:
        reason = _first_reason(reason, _ids(block, rule).is_null(), "no person id")
    for (why,), group in pl.DataFrame({"line": block[LINE], "why": reason}).drop_nulls("why").group_by("why"):
        report.quarantine(str(why), file, group["line"].to_list())
    good = reason.is_null()
    report.rows_kept += int(good.sum())
    return block.filter(good), second.filter(good)


def _first_reason(reason: pl.Series, holds: pl.Series, text: str) -> pl.Series:
    """Adds a reason where it holds and none was given before."""
    return reason.zip_with(reason.is_not_null() | ~holds, pl.Series([text]))


def _ids(block: pl.DataFrame, rule: FileRule) -> pl.Series:
    """Raw ids as text; null where empty. A column with an empty cell is often saved as 62161.0: the id is 62161."""
    ids = block[rule.person.column]
    text = ids.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")
    return text.zip_with(~is_empty(ids), _NO_TEXT)


def _decimal(block: pl.DataFrame, column: str, mark: str) -> pl.Series:
    cells = block[column]
    if mark == "," and cells.dtype == pl.String:
        cells = cells.str.replace(",", ".", literal=True)
    return numbers(cells)


def _passes(block: pl.DataFrame, conditions: Sequence[Condition], decimal: str) -> pl.Series:
    """Whether each row passes all rules; an empty cell passes only `!=`, one that is no flag no rule about flags."""
    passed = pl.repeat(True, len(block), eager=True)
    for rule in conditions:
        compare = OPERATORS[rule.operator]
        cells = block[rule.column]
        text = cells.cast(pl.String).str.strip_chars()
        if isinstance(rule.literal, bool):
            verdict = compare(_flag(block, rule.column, decimal), rule.literal)
        elif isinstance(rule.literal, float):
            verdict = compare(_decimal(block, rule.column, decimal), rule.literal)
        else:
            verdict = compare(text, rule.literal)
        passed &= verdict.fill_null(False).zip_with(~is_empty(cells), pl.Series([rule.operator == "!="]))
    return passed


def _flag(block: pl.DataFrame, column: str, mark: str) -> pl.Series:
    """Whether each cell is a number other than 0 or a word that means true; null where it is neither that nor false."""
    words = block[column].cast(pl.String).str.strip_chars().str.to_lowercase()
    spelled = words.replace_strict(_FLAGS, default=None, return_dtype=pl.Float64)
    number = _decimal(block, column, mark)
    return number.zip_with(number.is_not_null(), spelled) != 0


def _label(cell: object) -> float | str | None:
    """A number where it is one, else text; None where empty."""
    text = "" if cell is None else str(cell).strip()
    if text in ("", "NA", "NaN", "nan"):
        return None
    try:
        return float(text)
    except ValueError:
        return text[:NAME_LENGTH]
