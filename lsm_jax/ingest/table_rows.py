"""Turns blocks of rows into samples, events or labels, by the rules of a mapping."""

from __future__ import annotations

import dataclasses
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
    TimedRule,
    TimeRule,
)
from lsm_jax.ingest.parse import UNREADABLE, add_reason, epoch_seconds, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import LINE, PERSON

RELATIVE_START = int(dt.datetime(2001, 1, 1, tzinfo=dt.UTC).timestamp())  # a Monday
MAX_NAME_LENGTH = 64
Labels = dict[str, dict[str, float | str]]
_WEEK = 7 * 86400
_MAX_RELATIVE = 50 * 366 * 86400  # seconds
_FLAGS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}
_NO_TEXT = pl.Series([None], dtype=pl.String)
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
    """Where blocks come from, and how they are read.

    Attributes:
      file: the file's name in reports.
      person: the raw id, or None where a column holds it; the rows then get a column `PERSON`.
      time_zone: of wall-clock times whose rule names none.
      calendar: of relative times.
      report: counts what happens to each row.
    """

    file: str
    person: str | None
    time_zone: str
    calendar: Calendar
    report: IngestReport


def sample_rows(block: pl.DataFrame, rule: TableRule, index: int, origin: Origin) -> pl.DataFrame:
    """The good rows for each channel: rule (`index`), channel, sensor, second, value (NaN: not valid), invalid."""
    second, reasons = _seconds(block, rule, origin)
    if rule.signal:
        signals = [channel.signal for channel in rule.channels.values()]
        used = block[rule.signal].cast(pl.String).is_in(signals).fill_null(False)
        origin.report.rows_ignored += int((~used).sum())
        block, second, reasons = block.filter(used), second.filter(used), reasons.filter(used)
    reasons = add_reason(reasons, _unreadable_rows(block, rule, reasons, origin), "value is not a number")
    block, second = _good_rows(block, rule, second, reasons, origin)
    sensor = block[rule.sensor] if rule.sensor else pl.repeat(origin.file, len(block), eager=True)
    shared = {"sensor": sensor.cast(pl.String).fill_null("").hash(), "second": second}
    if origin.person is None:
        shared[PERSON] = _ids(block, rule)
    frames = []
    for number, (name, channel) in enumerate(rule.channels.items()):
        frame = _channel_rows(block, rule, name, channel, shared)
        frames.append(frame.with_columns(rule=pl.lit(index, pl.UInt16), channel=pl.lit(number, pl.UInt16)))
    return pl.concat(frames)


def event_rows(block: pl.DataFrame, rule: EventRule, origin: Origin) -> pl.DataFrame:
    """Good event rows: name, start and end (epoch minutes), kind."""
    second, reasons = _seconds(block, rule, origin)
    end = _minute(second) + rule.minutes
    if rule.end:
        end_second, end_reasons = _seconds(block, rule, origin, column=rule.end)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end_second < second).fill_null(False), "ends before it starts")
        end = _minute(end_second)
    default = rule.name or rule.kind
    name = pl.repeat(default, len(block), eager=True)
    if rule.name_column:
        name = block[rule.name_column].cast(pl.String).str.strip_chars().str.to_lowercase()
        name = name.str.slice(0, MAX_NAME_LENGTH).fill_null(default)
    block, second = _good_rows(block.with_columns(__end__=end, __name__=name), rule, second, reasons, origin)
    frame = pl.DataFrame({"name": block["__name__"], "start": _minute(second), "end": block["__end__"]})
    frame = frame.with_columns(kind=pl.lit(rule.kind))
    return frame if origin.person is not None else frame.with_columns(_ids(block, rule).alias(PERSON))


def add_labels(block: pl.DataFrame, rule: LabelRule, labels: Labels, origin: Origin) -> None:
    """Adds the labels of a block's people to `labels`. A later row of a person replaces an earlier one."""
    ids = _ids(block, rule) if origin.person is None else pl.repeat(origin.person, len(block), eager=True)
    origin.report.quarantine("no person id", origin.file, block[LINE].filter(ids.is_null()).to_list())
    origin.report.rows_kept += int(ids.is_not_null().sum())
    for person, row in zip(ids, block.iter_rows(named=True), strict=True):
        if person is not None:
            found = {name: _label(row[column]) for name, column in rule.columns.items()}
            labels.setdefault(person, {}).update({name: value for name, value in found.items() if value is not None})


def _channel_rows(
    block: pl.DataFrame, rule: TableRule, name: str, channel: ChannelRule, shared: dict[str, pl.Series]
) -> pl.DataFrame:
    scale, offset = channel.to_registry_unit(name)
    value = _decimal(block, rule.value or channel.column, rule.decimal) * scale + offset
    of_channel = block[rule.signal].cast(pl.String) == channel.signal if rule.signal else value.is_not_null()
    valid = _passes(block, (*rule.keep, *channel.keep), rule.decimal)
    value = value.zip_with(valid, _NO_NUMBER).fill_null(float("nan"))
    frame = pl.DataFrame(shared | {"value": value, "invalid": ~valid}).filter(of_channel)
    return frame.with_columns(pl.col("value").cast(pl.Float32))


def _seconds(block: pl.DataFrame, rule: TimedRule, origin: Origin, column: str = "") -> tuple[pl.Series, pl.Series]:
    """(UTC seconds, reasons where there are none) of the time's column, or of another column in the same format."""
    time = rule.time
    column = column or time.column
    if not time.relative:
        return epoch_seconds(block[column], time.formats, time.time_zone or origin.time_zone)
    if time.day and column == time.column:
        minute = _decimal(block, time.minute, rule.decimal)
        elapsed = (_decimal(block, time.day, rule.decimal) - time.first_day) * 86400 + minute * 60
        good = minute.is_between(0, 1439.999)
    else:
        elapsed = _decimal(block, column, rule.decimal) * RELATIVE_UNITS[time.unit or "minutes"]
        good = elapsed.is_not_null()
    good = (good & elapsed.is_between(0, _MAX_RELATIVE)).fill_null(False)
    # Hours such as 13.38333333 are whole minutes that lost their last digits.
    second = elapsed.zip_with(good, _NO_NUMBER).round(3 if time.unit == "seconds" else 0)
    second += origin.calendar.start(block, time)
    return second, add_reason(pl.repeat(None, len(block), dtype=pl.String, eager=True), ~good, UNREADABLE)


def _minute(second: pl.Series) -> pl.Series:
    return (second // 60).cast(pl.Int64)


def _unreadable_rows(block: pl.DataFrame, rule: TableRule, reasons: pl.Series, origin: Origin) -> pl.Series:
    """Whether each row has a damaged cell and no number. Damaged cells of other rows are counted."""
    any_damaged, any_number = pl.repeat(False, len(block), eager=True), pl.repeat(False, len(block), eager=True)
    damaged: dict[str, tuple[str, pl.Series]] = {}
    for name, channel in rule.channels.items():
        column = rule.value or channel.column
        if column not in damaged:
            parsed = _decimal(block, column, rule.decimal)
            damaged[column] = name, parsed.is_null() & ~is_empty(block[column])
            any_damaged |= damaged[column][1]
            any_number |= parsed.is_not_null()
    for name, is_damaged in damaged.values():
        lines = block[LINE].filter(is_damaged & any_number & reasons.is_null())
        origin.report.damage(name, origin.file, lines.to_list())
    return any_damaged & ~any_number


def _good_rows(
    block: pl.DataFrame, rule: TimedRule, second: pl.Series, reasons: pl.Series, origin: Origin
) -> tuple[pl.DataFrame, pl.Series]:
    """Rows with a person and without a reason against them; the others are quarantined."""
    if origin.person is None:
        reasons = add_reason(reasons, _ids(block, rule).is_null(), "no person id")
    good = quarantine_rows(block[LINE], reasons, origin.file, origin.report)
    return block.filter(good), second.filter(good)


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
    """Whether each row passes all conditions. An empty cell passes only `!=`, a cell that is no flag no flag rule."""
    passed = pl.repeat(True, len(block), eager=True)
    for condition in conditions:
        compare = OPERATORS[condition.operator]
        cells = block[condition.column]
        if isinstance(condition.literal, bool):
            result = compare(_flag(block, condition.column, decimal), condition.literal)
        elif isinstance(condition.literal, float):
            result = compare(_decimal(block, condition.column, decimal), condition.literal)
        else:
            result = compare(cells.cast(pl.String).str.strip_chars(), condition.literal)
        passed &= result.fill_null(False).zip_with(~is_empty(cells), pl.Series([condition.operator == "!="]))
    return passed


def _flag(block: pl.DataFrame, column: str, mark: str) -> pl.Series:
    """Whether each cell is a number other than 0 or a word that means true; null for neither true nor false."""
    words = block[column].cast(pl.String).str.strip_chars().str.to_lowercase()
    from_words = words.replace_strict(_FLAGS, default=None, return_dtype=pl.Float64)
    number = _decimal(block, column, mark)
    return number.zip_with(number.is_not_null(), from_words) != 0


def _label(cell: object) -> float | str | None:
    """A number if it is one, else text; None if empty."""
    text = "" if cell is None else str(cell).strip()
    if text in ("", "NA", "NaN", "nan"):
        return None
    try:
        return float(text)
    except ValueError:
        return text[:MAX_NAME_LENGTH]
