"""Reads any table of minute values that a mapping file describes (`mapping`).

Where the file name holds the person's id, a person's files are read when the person is read. Where a column holds it,
one streaming pass first sorts the rows by person on disk. Each file (or each value of a `sensor` column) is one sensor;
`days` merges the sensors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.files import SourceFile, UnreadableFile, source_files
from lsm_jax.ingest.mapping import FileRule, Mapping, load_mapping
from lsm_jax.ingest.parse import check_time_zone
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import RowsByPerson, Slice, load_slices, read_header, read_rows
from lsm_jax.ingest.sampling import minute_series
from lsm_jax.ingest.table_rows import Calendar, Labels, Origin, add_labels, event_rows, sample_rows


@dataclasses.dataclass(frozen=True)
class PersonFiles:
    """One person of a source: files of their own (with the index of the rule), slices of shared files, and labels."""

    person: str
    tables: Sequence[tuple[int, SourceFile]]
    events: Sequence[tuple[int, SourceFile]]
    table_slices: Sequence[Slice]
    event_slices: Sequence[Slice]
    labels: dict[str, float | str]


class _FilesByPerson:
    """The files of tables (or of events): those of one person each, and the rows of shared ones."""

    def __init__(self, scratch: Path) -> None:
        self.own: dict[str, list[tuple[int, SourceFile]]] = {}
        self.shared = RowsByPerson(scratch)

    @property
    def people(self) -> set[str]:
        return {*self.own, *self.shared.slices}

    def add(
        self, index: int, rule: FileRule, file: SourceFile, blocks: Iterable[pl.DataFrame], report: IngestReport
    ) -> None:
        if rule.person.column:
            for block in blocks:
                self.shared.add(block)
        elif person := _person_in_name(file, rule, report):
            self.own.setdefault(person, []).append((index, file))


class TableReader:
    """Reader of described tables (see `reader.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        if options.mapping is None:
            raise UserError("the table format needs --mapping M.toml; see configs/ingest/ for worked examples.")
        self._options = options
        self._mapping = load_mapping(options.mapping)
        self._zone = check_time_zone(options.time_zone or _mapping_time_zone(self._mapping, options.mapping))

    def channels(self, source: Path) -> tuple[str, ...]:
        files = list(source_files(source, IngestReport(), self._options.limits))
        for rule in self._mapping.rules:
            if not any(_matches(file, rule) for file in files):
                raise UserError(
                    f"{self._options.mapping}: {rule.section}.files = {rule.files!r} matches none of the {len(files)} "
                    f"files of {source}. Patterns are relative to the source folder."
                )
        return self._mapping.channels

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonFiles]:
        if self._options.scratch is None:
            raise UserError("the table reader needs a scratch folder (ReaderOptions.scratch).")
        tables, events = _FilesByPerson(self._options.scratch), _FilesByPerson(self._options.scratch)
        labels: Labels = {}
        for file in source_files(source, report, self._options.limits):
            if not any(_matches(file, rule) for rule in self._mapping.rules):
                report.ignore(file.label, "matched by no section of the mapping")
            for index, table in enumerate(self._mapping.tables):
                if _matches(file, table):
                    tables.add(index, table, file, self._samples(index, file, self._origin(file, report)), report)
            for index, event in enumerate(self._mapping.events):
                if _matches(file, event):
                    events.add(index, event, file, self._events(index, file, self._origin(file, report)), report)
            self._read_labels(file, labels, report)
        if missing := len({*labels, *events.people} - tables.people):
            report.note(f"{missing} people have labels or events but no recording; they are left out.")
        for person in sorted(tables.people):
            yield PersonFiles(
                person,
                tables.own.get(person, ()),
                events.own.get(person, ()),
                tables.shared.slices.get(person, ()),
                events.shared.slices.get(person, ()),
                labels.get(person, {}),
            )

    def read(self, _: Path, key: PersonFiles, report: IngestReport) -> PersonRecord | None:
        calendar, samples, events = Calendar(), list[pl.DataFrame](), list[pl.DataFrame]()
        for with_weekday in (True, False):  # files with a weekday set the date of day 0 for those without
            for index, file in key.tables:
                if bool(self._mapping.tables[index].time.weekday) == with_weekday:
                    samples += self._samples(index, file, self._origin(file, report, key.person, calendar))
            for index, file in key.events:
                if bool(self._mapping.events[index].time.weekday) == with_weekday:
                    events += self._events(index, file, self._origin(file, report, key.person, calendar))
        # Rows of shared files were read before their people were known, with Monday as day 0.
        if key.table_slices:
            samples.append(load_slices(key.table_slices).with_columns(pl.col("second") + calendar.shift))
        if key.event_slices:
            events.append(load_slices(key.event_slices).with_columns(pl.col("start", "end") + calendar.shift // 60))
        series = self._series(pl.concat(samples), report) if samples else ()
        if not series:
            report.people_without_data += 1
            return None
        zone = "UTC" if self._mapping.relative else self._zone
        return PersonRecord(key.person, series, _unique_events(events), key.labels, zone)

    def _origin(
        self, file: SourceFile, report: IngestReport, person: str | None = None, calendar: Calendar | None = None
    ) -> Origin:
        return Origin(file.label, person, self._zone, calendar or Calendar(), report)

    def _samples(self, index: int, file: SourceFile, origin: Origin) -> Iterator[pl.DataFrame]:
        rule = self._mapping.tables[index]
        for block in self._blocks(file, rule, rule.used_columns, origin.report):
            yield sample_rows(block, rule, index, origin)

    def _events(self, index: int, file: SourceFile, origin: Origin) -> Iterator[pl.DataFrame]:
        rule = self._mapping.events[index]
        for block in self._blocks(file, rule, rule.used_columns, origin.report):
            yield event_rows(block, rule, origin)

    def _read_labels(self, file: SourceFile, labels: Labels, report: IngestReport) -> None:
        for rule in self._mapping.labels:
            if not _matches(file, rule):
                continue
            person = None if rule.person.column else _person_in_name(file, rule, report)
            if person or rule.person.column:
                for block in self._blocks(file, rule, rule.used_columns, report):
                    add_labels(block, rule, labels, self._origin(file, report, person))

    def _blocks(
        self, file: SourceFile, rule: FileRule, columns: Sequence[str], report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The rule's columns of a file, block by block. A file that lacks one is set aside."""
        try:
            names = read_header(file, rule.separator).names
            if missing := [column for column in columns if column not in names]:
                raise UnreadableFile(
                    f"line 1 lacks the column {missing[0]!r}, which {rule.section} of the mapping names"
                )
            yield from read_rows(file, columns, report, rule.separator)
        except UnreadableFile as error:
            report.set_aside(file.label, str(error))

    def _series(self, samples: pl.DataFrame, report: IngestReport) -> tuple[Series, ...]:
        """One series per channel and sensor."""
        series = []
        for (index, number, _), group in samples.group_by("rule", "channel", "sensor", maintain_order=True):
            table = self._mapping.tables[int(str(index))]
            channel = list(table.channels)[int(str(number))]
            report.invalid[channel] += int(group["invalid"].sum())
            series.append(
                minute_series(
                    channel,
                    group["second"].to_numpy(),
                    group["value"].to_numpy(),
                    report,
                    period_minutes=table.period_minutes,
                    aggregate=table.channels[channel].aggregate,
                )
            )
        return tuple(series)


def _mapping_time_zone(mapping: Mapping, path: Path) -> str:
    """The mapping's one time zone, which cuts the days where the command line names none.

    Raises:
      UserError: the mapping names several.
    """
    zones = sorted({rule.time.time_zone for rule in mapping.timed} - {""})
    if len(zones) > 1 and not mapping.relative:
        raise UserError(
            f"{path}: time_zone is {' and '.join(map(repr, zones))}, but days are cut in one zone: give it with "
            f"--time-zone, such as --time-zone {zones[0]}."
        )
    return zones[0] if zones else "UTC"


def _person_in_name(file: SourceFile, rule: FileRule, report: IngestReport) -> str | None:
    match = re.search(rule.person.file, file.label)
    if match is None or not match.group(1):
        report.set_aside(file.label, f"{rule.section}.person.file finds no id in its name")
        return None
    return match.group(1)


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
