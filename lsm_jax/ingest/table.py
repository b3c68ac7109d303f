"""Reads any table of minute values that a mapping file describes (`mapping`).

Where the file name holds the person's id, a person's files are read when the person is read. Where a column holds it,
one streaming pass first sorts the rows by person on disk. Each file (or each value of a `sensor` column) is one sensor;
`days` merges the sensors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.files import SourceFile, UnreadableFile, source_files
from lsm_jax.ingest.mapping import EventRule, FileRule, LabelRule, MappingFile, Rule, TableRule, load_mapping
from lsm_jax.ingest.parse import check_time_zone
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import RowsByPerson, Slice, load_slices, read_header, read_rows
from lsm_jax.ingest.sampling import minute_series
from lsm_jax.ingest.table_rows import Calendar, Labels, Origin, add_labels, event_rows, sample_rows


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
        self._zone = check_time_zone(options.time_zone or _mapping_time_zone(self._mapping, options.mapping))

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
                        add_labels(block, rule, labels, self._origin(file, person, Calendar(), report))
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
        # Files with a weekday set the date of day 0 for those without.
        for with_weekday, tables in itertools.product((True, False), (True, False)):
            for index, file in key.files:
                has_weekday = bool(self._mapping.timed[index].time.weekday)
                if (has_weekday, self._is_table(index)) == (with_weekday, tables):
                    rows = self._rows(index, file, key.person, calendar, report)
                    (samples if tables else events).extend(rows)
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

    def _origin(self, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport) -> Origin:
        return Origin(file.label, person, self._zone, calendar, report)

    def _rows(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The samples or events of a file."""
        rule, origin = self._rules[index], self._origin(file, person, calendar, report)
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


def _mapping_time_zone(mapping: MappingFile, path: Path) -> str:
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
