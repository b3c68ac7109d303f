"""Reads any table of minute values that a mapping file describes (`mapping`).

Where the file name holds the person's id, a person's files are read when the person is read. Where a column holds it,
one streaming pass first sorts the rows by person on disk. Each file (or each value of a `sensor` column) is one sensor;
`days` merges the sensors.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.days import minute_series
from lsm_jax.ingest.files import SourceFile, UnreadableFile, source_files
from lsm_jax.ingest.mapping import (
    OPERATORS,
    RELATIVE_UNITS,
    Condition,
    EventRule,
    FileRule,
    LabelRule,
    MappingFile,
    Rule,
    TableRule,
    TimedRule,
    TimeRule,
    load_mapping,
)
from lsm_jax.ingest.parse import UNREADABLE, add_reason, epoch_seconds, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import LINE, PERSON, RowsByPerson, Slice, load_slices, read_header, read_rows

RELATIVE_START = int(dt.datetime(2001, 1, 1, tzinfo=dt.UTC).timestamp())  # a Monday
MAX_NAME_LENGTH = 64
Labels = dict[str, dict[str, float | str]]
_WEEK = 7 * 86400
_MAX_RELATIVE = 50 * 366 * 86400  # seconds
_FLAGS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}
_NO_TEXT = pl.Series([None], dtype=pl.String)
_NO_NUMBER = pl.Series([None], dtype=pl.Float64)


@dataclasses.dataclass(frozen=True)
class PersonTables:
    """One person of a source: files of their own (with the index of the rule), slices of shared files, and labels."""

    person: str
    files: Sequence[tuple[int, SourceFile]]
    sample_slices: Sequence[Slice]
    event_slices: Sequence[Slice]
    labels: dict[str, float | str]


class TableReader:
    """Reader of described tables (see `reader.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        if options.mapping is None:
            raise UserError("the table format needs --mapping M.toml; see configs/ingest/ for worked examples.")
        self._options = options
        self._mapping = load_mapping(options.mapping)
        self._rules = self._mapping.rules
        self._zone = options.time_zone or _mapping_time_zone(self._mapping, options.mapping)

    def channels(self, source: Path) -> tuple[str, ...]:
        files = list(source_files(source, IngestReport(), self._options.limits))
        for rule in self._rules:
            if not any(_matches(file, rule) for file in files):
                raise UserError(
                    f"{self._options.mapping}: {rule.section}.files = {rule.files!r} matches none of the {len(files)} "
                    f"files of {source}. Patterns are relative to the source folder."
                )
        return self._mapping.channels

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonTables]:
        if self._options.scratch is None:
            raise UserError("the table reader needs a scratch folder (ReaderOptions.scratch).")
        own: dict[str, list[tuple[int, SourceFile]]] = {}
        samples, events = RowsByPerson(self._options.scratch), RowsByPerson(self._options.scratch)
        labels: Labels = {}
        for file in source_files(source, report, self._options.limits):
            matching = [(index, rule) for index, rule in enumerate(self._rules) if _matches(file, rule)]
            if not matching:
                report.ignore(file.label, "matched by no section of the mapping")
            for index, rule in matching:
                match = re.search(rule.person.file, file.label) if rule.person.file else None
                person = match.group(1) if match else None
                if rule.person.file and not person:
                    report.set_aside(file.label, f"{rule.section}.person.file finds no id in its name")
                elif isinstance(rule, LabelRule):
                    for block in self._blocks(file, rule, report):
                        add_labels(block, rule, labels, file.label, person, report)
                elif person:
                    own.setdefault(person, []).append((index, file))
                else:
                    for rows in self._rows(index, file, None, Calendar(), report):
                        (samples if isinstance(rule, TableRule) else events).add(rows)
        recorded = {name for name, files in own.items() if any(self._is_table(index) for index, _ in files)}
        recorded |= samples.slices.keys()
        if others := {*labels, *own, *events.slices} - recorded:
            report.note(f"{len(others)} people have labels or events but no recording; they are left out.")
        for name in sorted(recorded):
            sample_slices, event_slices = samples.slices.get(name, []), events.slices.get(name, [])
            yield PersonTables(name, own.get(name, []), sample_slices, event_slices, labels.get(name, {}))

    def read(self, _: Path, key: PersonTables, report: IngestReport) -> PersonRecord | None:
        calendar, samples, events = Calendar(), list[pl.DataFrame](), list[pl.DataFrame]()
        for index, file in sorted(key.files, key=lambda pair: self._order(pair[0])):
            rows = self._rows(index, file, key.person, calendar, report)
            (samples if self._is_table(index) else events).extend(rows)
        # Rows of shared files were read before their people were known, with Monday as day 0.
        if key.sample_slices:
            samples.append(load_slices(key.sample_slices).with_columns(pl.col("second") + calendar.shift))
        if key.event_slices:
            events.append(load_slices(key.event_slices).with_columns(pl.col("start", "end") + calendar.shift // 60))
        series = self._series(pl.concat(samples), report) if samples else ()
        if not series:
            report.people_without_data += 1
            return None
        zone = "UTC" if self._mapping.relative else self._zone
        return PersonRecord(key.person, series, _unique_events(events), key.labels, zone)

    def _is_table(self, index: int) -> bool:
        return isinstance(self._rules[index], TableRule)

    def _order(self, index: int) -> tuple[bool, bool]:
        """Files with a weekday come first, since they set the date of day 0 for those without; tables before events."""
        return not self._mapping.timed[index].time.weekday, not self._is_table(index)

    def _rows(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The samples or events of a file."""
        rule, origin = self._rules[index], Origin(file.label, person, self._zone, calendar, report)
        for block in self._blocks(file, rule, report):
            if isinstance(rule, TableRule):
                yield sample_rows(block, rule, index, origin)
            elif isinstance(rule, EventRule):
                yield event_rows(block, rule, origin)

    def _blocks(self, file: SourceFile, rule: Rule, report: IngestReport) -> Iterator[pl.DataFrame]:
        """The rule's columns of a file, block by block. A file that lacks one is set aside."""
        try:
            names = read_header(file, rule.separator).names
            if missing := [column for column in rule.used_columns if column not in names]:
                raise UnreadableFile(
                    f"line 1 lacks the column {missing[0]!r}, which {rule.section} of the mapping names"
                )
            yield from read_rows(file, rule.used_columns, report, rule.separator)
        except UnreadableFile as error:
            report.set_aside(file.label, str(error))

    def _series(self, samples: pl.DataFrame, report: IngestReport) -> tuple[Series, ...]:
        """One series per channel and sensor."""
        series = []
        for (index, number, _), group in samples.group_by("rule", "channel", "sensor", maintain_order=True):
            table = self._mapping.tables[int(str(index))]
            channel, rule = list(table.channels.items())[int(str(number))]
            report.invalid[channel] += int(group["invalid"].sum())
            second, value = group["second"].to_numpy(), group["value"].to_numpy()
            period, aggregate = table.period_minutes, rule.aggregate
            series.append(minute_series(channel, second, value, report, period_minutes=period, aggregate=aggregate))
        return tuple(series)


def _mapping_time_zone(mapping: MappingFile, path: Path) -> str:
    """The mapping's one time zone, which cuts the days where the command line names none."""
    zones = sorted({rule.time.time_zone for rule in mapping.timed} - {""})
    if len(zones) > 1 and not mapping.relative:
        raise UserError(
            f"{path}: time_zone is {' and '.join(map(repr, zones))}, but days are cut in one zone: give it with "
            f"--time-zone, such as --time-zone {zones[0]}."
        )
    return zones[0] if zones else "UTC"


def _matches(file: SourceFile, rule: FileRule) -> bool:
    """Whether the rule's glob matches. The members of a zip count as files in the zip's folder."""
    path = file.path if not file.member else str(Path(file.path).parent / file.member)
    return fnmatch.fnmatchcase(path, rule.files)


def _unique_events(events: Sequence[pl.DataFrame]) -> tuple[RecordEvent, ...]:
    """Events in order of time, each once: two logs of a person may repeat each other."""
    if not events:
        return ()
    table = pl.concat([frame.select("kind", "name", "start", "end") for frame in events]).unique(maintain_order=True)
    return tuple(RecordEvent(*row) for row in table.sort("start", "end").iter_rows())


# Rows of a file, by the rules of the mapping.


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
    time_zone: str  # of wall-clock times whose rule names none
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
        scale, offset = channel.to_registry_unit(name)
        value = _decimal(block, rule.value or channel.column, rule.decimal) * scale + offset
        of_channel = block[rule.signal].cast(pl.String) == channel.signal if rule.signal else value.is_not_null()
        valid = _passes(block, (*rule.keep, *channel.keep), rule.decimal)
        value = value.zip_with(valid, _NO_NUMBER).fill_null(float("nan")).cast(pl.Float32)
        frame = pl.DataFrame(shared | {"value": value, "invalid": ~valid}).filter(of_channel)
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


def add_labels(
    block: pl.DataFrame, rule: LabelRule, labels: Labels, file: str, person: str | None, report: IngestReport
) -> None:
    """Adds the labels of a block's people to `labels`. A later row of a person replaces an earlier one."""
    ids = _ids(block, rule) if person is None else pl.repeat(person, len(block), eager=True)
    report.quarantine("no person id", file, block[LINE].filter(ids.is_null()).to_list())
    report.rows_kept += int(ids.is_not_null().sum())
    for person, row in zip(ids, block.iter_rows(named=True), strict=True):
        if person is not None:
            found = {name: _label(row[column]) for name, column in rule.columns.items()}
            labels.setdefault(person, {}).update({name: value for name, value in found.items() if value is not None})


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
