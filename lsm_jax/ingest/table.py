"""Any table of minute values, described by a mapping file (`readers.mapping`).

Where the file name tells the person, a person's files are read when their turn comes. Where a column does, one
streaming pass sorts the rows by person on disk first. Each file (or each value of a `sensor` column) is a sensor
of its own; sensors are merged by `readers.days`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.base import ReaderOptions
from lsm_jax.ingest.files import Refused, SourceFile, source_files
from lsm_jax.ingest.mapping import EventRule, FileRule, LabelRule, Mapping, TableRule
from lsm_jax.ingest.mapping_file import load_mapping
from lsm_jax.ingest.parse import checked_zone
from lsm_jax.ingest.record import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import header, rows
from lsm_jax.ingest.sampling import minute_series
from lsm_jax.ingest.spill import Piece, Spill, load
from lsm_jax.ingest.table_rows import Calendar, add_labels, event_rows, sample_rows

Labels = dict[str, dict[str, float | str]]
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


class _Listing:
    """Who is in the files of one kind of section: files of their own, and slices of shared files."""

    def __init__(self, scratch: Path) -> None:
        self.own: dict[str, list[tuple[int, SourceFile]]] = {}
        self.shared = Spill(scratch)

    @property
    def people(self) -> set[str]:
        return {*self.own, *self.shared.pieces}

    def add(
        self,
        index: int,
        rule: TableRule | EventRule,
        file: SourceFile,
        blocks: Iterator[pl.DataFrame],
        report: IngestReport,
    ) -> None:
        if rule.person.column:
            for block in blocks:
                self.shared.add(block)
        elif person := _person_in_name(file, rule):
            self.own.setdefault(person, []).append((index, file))
        else:
            report.set_aside(file.label, f"{rule.where}.person.file finds no id in its name")


class TableReader:
    """Reader of described tables (see `readers.base.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        if options.mapping is None:
            raise UserError("the table format needs --mapping M.toml; see configs/ingest/ for worked examples.")
        self._options = options
        self._mapping = load_mapping(options.mapping)
        self._zone = checked_zone(options.time_zone or _only_zone(self._mapping, options.mapping), "--time-zone")

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
        tables, events, labels = _Listing(self._options.scratch), _Listing(self._options.scratch), Labels()
        for file in source_files(source, report, self._options.limits):
            if not any(
                _matches(file, rule) for rule in (*self._mapping.tables, *self._mapping.events, *self._mapping.labels)
            ):
                report.ignore(file.label, "matched by no section of the mapping")
            for index, table in _matching(file, self._mapping.tables):
                tables.add(index, table, file, self._samples(index, file, None, Calendar(), report), report)
            for index, event in _matching(file, self._mapping.events):
                events.add(index, event, file, self._happened(index, file, None, Calendar(), report), report)
            for _, label in _matching(file, self._mapping.labels):
                self._read_labels(file, label, labels, report)
        if lost := len({*labels, *events.people} - tables.people):
            report.note(f"{lost} people have labels or events but no recording; they are left out.")
        for person in sorted(tables.people):
            yield Key(
                person,
                tuple(tables.own.get(person, ())),
                tuple(events.own.get(person, ())),
                tuple(tables.shared.pieces.get(person, ())),
                tuple(events.shared.pieces.get(person, ())),
                tuple(labels.get(person, {}).items()),
            )

    def read(self, _: Path, key: Key, report: IngestReport) -> PersonRecord | None:
        calendar, samples, happened = Calendar(), list[pl.DataFrame](), list[pl.DataFrame]()
        for first in (True, False):  # files that tell the weekday say where day 0 lies for those that do not
            for index, file in key.tables:
                if bool(self._mapping.tables[index].time.weekday) == first:
                    samples += self._samples(index, file, key.person, calendar, report)
            for index, file in key.events:
                if bool(self._mapping.events[index].time.weekday) == first:
                    happened += self._happened(index, file, key.person, calendar, report)
        # Slices of shared files were read before their people were known, from the Monday.
        if key.table_pieces:
            samples.append(load(key.table_pieces).with_columns(pl.col("second") + calendar.moved))
        if key.event_pieces:
            happened.append(load(key.event_pieces).with_columns(pl.col("start", "end") + calendar.moved // 60))
        series = self._series(pl.concat(samples), report) if samples else ()
        if not series:
            report.people_without_data += 1
            return None
        zone = "UTC" if self._mapping.relative else self._zone
        return PersonRecord(key.person, series, _events(happened), dict(key.labels), zone)

    def _samples(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        rule = self._mapping.tables[index]
        for block in self._blocks(file, rule, report):
            yield sample_rows(block, rule, index, file.label, person, self._zone, calendar, report)

    def _happened(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        rule = self._mapping.events[index]
        for block in self._blocks(file, rule, report):
            yield event_rows(block, rule, file.label, person, self._zone, calendar, report)

    def _read_labels(self, file: SourceFile, rule: LabelRule, labels: Labels, report: IngestReport) -> None:
        person = None if rule.person.column else _person_in_name(file, rule)
        if not rule.person.column and person is None:
            report.set_aside(file.label, f"{rule.where}.person.file finds no id in its name")
            return
        for block in self._blocks(file, rule, report):
            add_labels(block, rule, file.label, person, labels, report)

    def _blocks(
        self, file: SourceFile, rule: TableRule | EventRule | LabelRule, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The rule's columns of a file, block by block; a file that lacks one is set aside."""
        try:
            names = header(file, self._options.limits, rule.separator).names
            if missing := [column for column in rule.columns if column not in names]:
                raise Refused(f"line 1 lacks the column {missing[0]!r}, which {rule.where} of the mapping names")
            yield from rows(file, rule.columns, report, self._options.limits, rule.separator)
        except Refused as refusal:
            report.set_aside(file.label, str(refusal))

    def _series(self, samples: pl.DataFrame, report: IngestReport) -> tuple[Series, ...]:
        """One series per channel and sensor."""
        series = []
        for (index, number, _), group in samples.group_by("rule", "channel", "sensor", maintain_order=True):
            table = self._mapping.tables[int(str(index))]
            channel = table.channels[int(str(number))]
            report.invalid[channel.channel] += int(group["invalid"].sum())
            series.append(
                minute_series(
                    channel.channel,
                    group["second"].to_numpy(),
                    group["value"].to_numpy(),
                    report,
                    period_minutes=table.period_minutes,
                    aggregate=channel.aggregate,
                )
            )
        return tuple(series)


def _only_zone(mapping: Mapping, path: Path) -> str:
    """The zone that cuts the days where the command line names none: the mapping's, where it names one.

    Raises:
      UserError: the mapping names several.
    """
    timed: tuple[TableRule | EventRule, ...] = (*mapping.tables, *mapping.events)
    zones = sorted({rule.time.time_zone for rule in timed} - {""})
    if len(zones) > 1 and not mapping.relative:
        raise UserError(
            f"{path}: time_zone is {' and '.join(map(repr, zones))}, but days are cut in one zone: give it with "
            f"--time-zone, such as --time-zone {zones[0]}."
        )
    return zones[0] if zones else "UTC"


def _person_in_name(file: SourceFile, rule: FileRule) -> str | None:
    match = re.search(rule.person.pattern, file.label)
    return match.group(1) if match else None


def _matches(file: SourceFile, rule: FileRule) -> bool:
    """Globs see a zip's members as files beside the zip."""
    path = file.path if not file.member else str(Path(file.path).parent / file.member)
    return fnmatch.fnmatchcase(path, rule.files)


def _matching(file: SourceFile, rules: Sequence[_Rule]) -> Iterator[tuple[int, _Rule]]:
    return ((index, rule) for index, rule in enumerate(rules) if _matches(file, rule))


def _events(happened: Sequence[pl.DataFrame]) -> tuple[RecordEvent, ...]:
    """Events in order of time, each once: two logs of a person may repeat each other."""
    if not happened:
        return ()
    table = pl.concat([frame.select("kind", "name", "start", "end") for frame in happened]).unique(maintain_order=True)
    return tuple(RecordEvent(*row) for row in table.sort("start", "end").iter_rows())
