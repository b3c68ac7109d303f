"""Any table of minute values, described by a mapping file (`readers.mapping`).

Where the file name tells the person, a person's files are read when their turn comes. Where a column does, one
streaming pass sorts the rows by person on disk first. Times without a date are put on the week of Monday
2001-01-01, whose calendar means nothing but its weekdays.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.readers.base import ReaderOptions
from lsm_jax.readers.files import Refused, SourceFile, source_files
from lsm_jax.readers.mapping import (
    OPERATORS,
    RELATIVE_UNITS,
    Condition,
    EventRule,
    FileRule,
    LabelRule,
    TableRule,
    TimeRule,
    load_mapping,
)
from lsm_jax.readers.parse import UNREADABLE, checked_zone, epoch_seconds, is_empty, numbers
from lsm_jax.readers.record import PersonRecord, RecordEvent, Series
from lsm_jax.readers.report import IngestReport
from lsm_jax.readers.rows import LINE, header, rows
from lsm_jax.readers.sampling import minute_series
from lsm_jax.readers.spill import PERSON, Piece, Spill, load

RELATIVE_START = int(dt.datetime(2001, 1, 1, tzinfo=dt.UTC).timestamp())  # a Monday
LONGEST_RELATIVE_SECONDS = 50 * 366 * 86400
NAME_LENGTH = 64
_Rule = TypeVar("_Rule", bound=FileRule)


@dataclasses.dataclass(frozen=True)
class Key:
    """One person of a source: their own files (with the index of their rule), slices of shared ones, labels."""

    person: str
    tables: tuple[tuple[int, SourceFile], ...] = ()
    events: tuple[tuple[int, SourceFile], ...] = ()
    table_pieces: tuple[Piece, ...] = ()
    event_pieces: tuple[Piece, ...] = ()
    labels: tuple[tuple[str, float | str], ...] = ()


class TableReader:
    """Reader of described tables (see `readers.base.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        if options.mapping is None:
            raise UserError("the table format needs --mapping M.toml; see configs/ingest/ for worked examples.")
        self._options = options
        self._mapping = load_mapping(options.mapping)
        self._zone = checked_zone(options.time_zone or "UTC", "--time-zone")

    def channels(self, source: Path) -> tuple[str, ...]:
        files = list(source_files(source, IngestReport(), self._options.limits))
        for rule in (*self._mapping.tables, *self._mapping.events, *self._mapping.labels):
            if not any(_matches(file, rule) for file in files):
                raise UserError(
                    f"{self._options.mapping}: {rule.where}.files = {rule.files!r} matches none of the {len(files)} "
                    f"files of {source}. Patterns are relative to the source folder."
                )
        return self._mapping.channels

    def people(self, source: Path, report: IngestReport) -> Iterator[Key]:
        if self._options.scratch is None:
            raise UserError("the table reader needs a scratch folder (ReaderOptions.scratch).")
        tables, events = Spill(self._options.scratch), Spill(self._options.scratch)
        own_tables: dict[str, list[tuple[int, SourceFile]]] = {}
        own_events: dict[str, list[tuple[int, SourceFile]]] = {}
        labels: dict[str, dict[str, float | str]] = {}
        for file in source_files(source, report, self._options.limits):
            used = False
            for index, table in _matching(file, self._mapping.tables):
                used = True
                self._list(index, file, table, own_tables, tables, report)
            for index, event in _matching(file, self._mapping.events):
                used = True
                self._list(index, file, event, own_events, events, report)
            for _, label in _matching(file, self._mapping.labels):
                used = True
                self._read_labels(file, label, labels, report)
            if not used:
                report.ignore(file.label, "matched by no section of the mapping")
        recorded = {*own_tables, *tables.pieces}
        if lost := len({*labels, *own_events, *events.pieces} - recorded):
            report.note(f"{lost} people have labels or events but no recording; they are left out.")
        for person in sorted(recorded):
            yield Key(
                person,
                tuple(own_tables.get(person, ())),
                tuple(own_events.get(person, ())),
                tuple(tables.pieces.get(person, ())),
                tuple(events.pieces.get(person, ())),
                tuple(labels.get(person, {}).items()),
            )

    def read(self, _: Path, key: Key, report: IngestReport) -> PersonRecord | None:
        samples = [load(key.table_pieces)] if key.table_pieces else []
        for index, file in key.tables:
            samples += list(self._samples(index, file, key.person, report))
        happened = [load(key.event_pieces)] if key.event_pieces else []
        for index, file in key.events:
            happened += list(self._happened(index, file, key.person, report))
        series = self._series(pl.concat(samples), report) if samples else ()
        if not any(len(each.minute) for each in series):
            report.people_without_data += 1
            return None
        zone = "UTC" if self._mapping.relative else self._zone
        return PersonRecord(key.person, series, _events(happened), dict(key.labels), zone)

    def _list(
        self,
        index: int,
        file: SourceFile,
        rule: TableRule | EventRule,
        own: dict[str, list[tuple[int, SourceFile]]],
        spill: Spill,
        report: IngestReport,
    ) -> None:
        """Files a person's own file under their id, or sorts a shared file's rows by person."""
        if rule.person.column:
            blocks = self._samples if isinstance(rule, TableRule) else self._happened
            for block in blocks(index, file, None, report):
                spill.add(block)
        elif match := re.search(rule.person.pattern, file.label):
            own.setdefault(match.group(1), []).append((index, file))
        else:
            report.set_aside(file.label, f"{rule.where}.person.file finds no id in its name")

    def _series(self, samples: pl.DataFrame, report: IngestReport) -> tuple[Series, ...]:
        """One series per channel and sensor."""
        series = []
        for (index, number, _), group in samples.group_by("rule", "channel", "sensor", maintain_order=True):
            table = self._mapping.tables[int(str(index))]
            channel = table.channels[int(str(number))]
            second, value = group["second"].to_numpy(), group["value"].to_numpy()
            report.invalid[channel.channel] += int(group["invalid"].sum())
            series.append(
                minute_series(
                    channel.channel,
                    second,
                    value,
                    report,
                    period_minutes=table.period_minutes,
                    aggregate=channel.aggregate,
                )
            )
        return tuple(series)

    def _blocks(
        self, file: SourceFile, rule: FileRule, columns: Sequence[str], report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        try:
            names = header(file, self._options.limits, rule.separator).names
            if missing := [column for column in columns if column not in names]:
                raise Refused(f"lacks the column {missing[0]!r} of {rule.where} in the mapping")
            yield from rows(file, columns, report, self._options.limits, rule.separator)
        except Refused as refusal:
            report.set_aside(file.label, str(refusal))

    def _samples(
        self, index: int, file: SourceFile, person: str | None, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """A table's good rows: PERSON (where a column tells), rule, channel, sensor, second, value, invalid."""
        rule = self._mapping.tables[index]
        start = None
        for block in self._blocks(file, rule, rule.columns, report):
            start = _relative_start(block, rule.time) if start is None else start
            second, reason = self._seconds(block, rule.time, start)
            block, second, reason = _known_signals(block, rule, second, reason, report)
            block, second = _good_rows(block, rule, file.label, second, reason, report, person)
            sensor = block[rule.sensor] if rule.sensor else pl.repeat(file.label, len(block), eager=True)
            for number, channel in enumerate(rule.channels):
                value = _scaled(block, rule.decimal, channel.column, channel.scale, channel.offset)
                mine = block[rule.signal].cast(pl.String) == channel.signal if rule.signal else value.is_not_null()
                valid = _passes(block, (*rule.keep, *channel.keep), rule.decimal)
                frame = pl.DataFrame(
                    {
                        "rule": pl.repeat(index, len(block), dtype=pl.UInt16, eager=True),
                        "channel": pl.repeat(number, len(block), dtype=pl.UInt16, eager=True),
                        "sensor": sensor.cast(pl.String).hash(),
                        "second": second,
                        "value": value.cast(pl.Float32).zip_with(valid, pl.Series([None], dtype=pl.Float32)),
                        "invalid": ~valid,
                    }
                ).with_columns(pl.col("value").fill_null(float("nan")))
                if person is None:
                    frame = frame.with_columns(_ids(block, rule).alias(PERSON))
                yield frame.filter(mine)

    def _happened(
        self, index: int, file: SourceFile, person: str | None, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """Good event rows: PERSON (where a column tells), kind, name, start and end in epoch minutes."""
        rule = self._mapping.events[index]
        start = None
        for block in self._blocks(file, rule, rule.columns, report):
            start = _relative_start(block, rule.time) if start is None else start
            second, reason = self._seconds(block, rule.time, start)
            if rule.end:
                until = dataclasses.replace(rule.time, column=rule.end)
                last, fault = self._seconds(block, until, start)
                reason = reason.zip_with(reason.is_not_null(), fault)
                reason = reason.zip_with(reason.is_not_null() | (last >= second), pl.Series(["ends before it starts"]))
                block = block.with_columns(__end__=last // 60)
            block, second = _good_rows(block, rule, file.label, second, reason, report, person)
            begin = second // 60
            names = block[rule.name_column].cast(pl.String) if rule.name_column else pl.Series([rule.name])
            frame = pl.DataFrame(
                {
                    "kind": pl.repeat(rule.kind, len(block), eager=True),
                    "name": names.str.strip_chars().str.to_lowercase().str.slice(0, NAME_LENGTH).fill_null(rule.kind)
                    if rule.name_column
                    else pl.repeat(rule.name, len(block), eager=True),
                    "start": begin,
                    "end": block["__end__"] if rule.end else begin + rule.minutes,
                }
            )
            yield frame if person is not None else frame.with_columns(_ids(block, rule).alias(PERSON))

    def _read_labels(
        self, file: SourceFile, rule: LabelRule, labels: dict[str, dict[str, float | str]], report: IngestReport
    ) -> None:
        for block in self._blocks(file, rule, rule.columns, report):
            ids = _ids(block, rule) if rule.person.column else None
            no_id = ids.is_null() if ids is not None else pl.repeat(False, len(block), eager=True)
            report.quarantine("no person id", file.label, block[LINE].filter(no_id).to_list())
            report.rows_kept += int((~no_id).sum())
            match = None if ids is not None else re.search(rule.person.pattern, file.label)
            for row, bad in zip(block.iter_rows(named=True), no_id, strict=True):
                person = row[rule.person.column] if ids is not None else match and match.group(1)
                if bad or person is None:
                    continue
                mine = labels.setdefault(str(person).strip(), {})
                mine.update({name: value for name, column in rule.labels if (value := _label(row[column])) is not None})

    def _seconds(self, block: pl.DataFrame, time: TimeRule, start: int | None) -> tuple[pl.Series, pl.Series]:
        if not time.relative:
            zone = time.time_zone or self._zone
            return epoch_seconds(block[time.column], time.formats, zone)
        if time.day:
            passed = (numbers(block[time.day]) - time.first_day) * 86400 + numbers(block[time.minute]) * 60
        else:
            passed = numbers(block[time.column]) * RELATIVE_UNITS[time.unit]
        good = passed.is_between(0, LONGEST_RELATIVE_SECONDS).fill_null(False)
        # Hours such as 13.38333333 are whole minutes that lost their last digits.
        second = passed.zip_with(good, pl.Series([None], dtype=pl.Float64)).round().cast(pl.Int64)
        reason = pl.Series([None], dtype=pl.String).extend_constant(None, max(len(block) - 1, 0)).head(len(block))
        reason = reason.zip_with(good, pl.Series([UNREADABLE]))
        return second + (RELATIVE_START if start is None else start), reason


def _matches(file: SourceFile, rule: FileRule) -> bool:
    """Globs see a zip's members as files beside the zip."""
    path = file.path if not file.member else str(Path(file.path).parent / file.member)
    return fnmatch.fnmatchcase(path, rule.files)


def _matching(file: SourceFile, rules: Sequence[_Rule]) -> Iterator[tuple[int, _Rule]]:
    return ((index, rule) for index, rule in enumerate(rules) if _matches(file, rule))


def _ids(block: pl.DataFrame, rule: FileRule) -> pl.Series:
    """Raw ids as text; null where empty."""
    ids = block[rule.person.column]
    return ids.cast(pl.String).str.strip_chars().zip_with(~is_empty(ids), pl.Series([None], dtype=pl.String))


def _relative_start(block: pl.DataFrame, time: TimeRule) -> int | None:
    """Second of day 0's midnight, so that the weekday of the first row that tells it is right."""
    if not time.weekday:
        return RELATIVE_START
    told = (numbers(block[time.weekday]) - numbers(block[time.weekday_day])).drop_nulls()
    return RELATIVE_START + int(told[0]) % 7 * 86400 if len(told) else None


def _known_signals(
    block: pl.DataFrame, rule: TableRule, second: pl.Series, reason: pl.Series, report: IngestReport
) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """Of a long table, only the rows of signals that the mapping names."""
    if not rule.signal:
        return block, second, reason
    known = block[rule.signal].cast(pl.String).is_in([channel.signal for channel in rule.channels]).fill_null(False)
    report.rows_ignored += int((~known).sum())
    return block.filter(known), second.filter(known), reason.filter(known)


def _good_rows(
    block: pl.DataFrame,
    rule: TableRule | EventRule,
    file: str,
    second: pl.Series,
    reason: pl.Series,
    report: IngestReport,
    person: str | None,
) -> tuple[pl.DataFrame, pl.Series]:
    """Rows with a person, a time and at least one readable value; the others are quarantined."""
    if person is None:
        reason = reason.zip_with(_ids(block, rule).is_not_null(), pl.Series(["no person id"]))
    if isinstance(rule, TableRule):
        spoilt, readable = pl.repeat(False, len(block), eager=True), pl.repeat(False, len(block), eager=True)
        damage = {}
        for channel in {rule.channels[0].column: rule.channels[0]}.values() if rule.signal else rule.channels:
            cells = block[channel.column]
            parsed = _scaled(block, rule.decimal, channel.column, 1, 0)
            damage[channel.channel] = parsed.is_null() & ~is_empty(cells)
            spoilt |= damage[channel.channel]
            readable |= parsed.is_not_null()
        unreadable = spoilt & ~readable
        reason = reason.zip_with(reason.is_not_null() | ~unreadable, pl.Series(["value is not a number"]))
        for name, where in damage.items():
            report.damage(name, file, block[LINE].filter(where & readable & reason.is_null()).to_list())
    for (why,), group in pl.DataFrame({"line": block[LINE], "why": reason}).drop_nulls("why").group_by("why"):
        report.quarantine(str(why), file, group["line"].to_list())
    good = reason.is_null()
    report.rows_kept += int(good.sum())
    return block.filter(good), second.filter(good)


def _scaled(block: pl.DataFrame, decimal: str, column: str, scale: float, offset: float) -> pl.Series:
    cells = block[column]
    if decimal == "," and cells.dtype == pl.String:
        cells = cells.str.replace(",", ".", literal=True)
    return numbers(cells) * scale + offset


def _passes(block: pl.DataFrame, conditions: Sequence[Condition], decimal: str) -> pl.Series:
    """Whether each row passes all rules."""
    passed = pl.repeat(True, len(block), eager=True)
    for rule in conditions:
        cells = block[rule.column]
        if isinstance(rule.literal, bool):
            text = cells.cast(pl.String).str.to_lowercase().str.strip_chars()
            truth = text.is_in(["true", "1", "yes", "y"])
            verdict = OPERATORS[rule.operator](truth, rule.literal).zip_with(
                ~is_empty(cells), pl.Series([None], dtype=pl.Boolean)
            )
        elif isinstance(rule.literal, float):
            verdict = OPERATORS[rule.operator](_scaled(block, decimal, rule.column, 1, 0), rule.literal)
        else:
            verdict = OPERATORS[rule.operator](cells.cast(pl.String).str.strip_chars(), rule.literal)
        passed &= verdict.fill_null(rule.operator == "!=")
    return passed


def _label(cell: object) -> float | str | None:
    """A number where it is one, else text; None where empty."""
    text = "" if cell is None else str(cell).strip()
    if not text or text in ("NA", "NaN", "nan"):
        return None
    try:
        return float(text)
    except ValueError:
        return text[:NAME_LENGTH]


def _events(happened: Sequence[pl.DataFrame]) -> tuple[RecordEvent, ...]:
    if not happened:
        return ()
    table = pl.concat([frame.select("kind", "name", "start", "end") for frame in happened]).unique(maintain_order=True)
    return tuple(RecordEvent(*row) for row in table.sort("start", "end").iter_rows())
