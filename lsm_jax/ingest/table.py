"""Reads any table of minute values that a mapping file describes (`mapping`).

Where the file name holds the person's id, a person's files are read when the person is read. Where a column holds it,
one streaming pass first sorts the rows by person on disk. Each file (or each value of a `sensor` column) is one sensor;
`days` merges the sensors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.clock import Clock, clock_of, is_floating, on_clock
from lsm_jax.ingest.columns import Calendar, Origin, missing_columns
from lsm_jax.ingest.dates import DateOrders, has_both_orders
from lsm_jax.ingest.events import PersonLabels, add_labels, event_rows, joined_events, label_times
from lsm_jax.ingest.faults import reading
from lsm_jax.ingest.files import SourceFile, UnreadableFile, source_files
from lsm_jax.ingest.mapping import MappingFile, load_mapping
from lsm_jax.ingest.numerals import plain_numbers
from lsm_jax.ingest.person import Roster
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import PERSON, Layout, RowsByPerson, Slice, load_slices, read_header, read_rows
from lsm_jax.ingest.samples import sample_rows, sample_series
from lsm_jax.ingest.section_rules import EventRule, FileRule, LabelRule, Rule, TableRule
from lsm_jax.ingest.unused_keys import unused_keys

AnyRule = TypeVar("AnyRule", bound=FileRule)
MIXED_CLOCKS = (
    "Some people have wall-clock times and times in UTC, and no time zone is known that joins them: they may be hours "
    "apart. Name the zone: --time-zone Europe/Berlin, or time_zone in the mapping."
)


@dataclasses.dataclass(frozen=True)
class PersonTables:
    """One person of a source: files of their own (with the index of the rule), slices of shared files, and labels."""

    person: str
    files: Sequence[tuple[int, SourceFile]]
    sample_slices: Sequence[Slice]
    event_slices: Sequence[Slice]
    labels: PersonLabels
    label_files: Sequence[str]  # as in reports


class TableReader:
    """Reader of described tables (see `reader.Reader`)."""

    def __init__(self, options: ReaderOptions, annotated_format: str = "", mapping: MappingFile | None = None) -> None:
        """Reads the mapping file.

        Args:
          annotated_format: the format whose recordings get the events and labels, "" where tables are recordings.
          mapping: that of a format that comes with the package, instead of a file.
        """
        self._options = options
        is_built_in = mapping is not None
        if mapping is None:
            if options.mapping is None:
                raise UserError("the table format needs --mapping M.toml; see configs/ingest/ for worked examples.")
            mapping = load_mapping(options.mapping, annotated_format)
        self._mapping = mapping
        self._rules = mapping.rules
        self._sections: dict[SourceFile, list[int]] = {}
        self._dates = DateOrders(options.date_order)
        self.time_zone = options.time_zone or mapping.one_time_zone
        self.people_rule = options.people.over(mapping.people)
        if options.people.is_of_files and is_built_in:
            self._rules = [rule.model_copy(update={"person": options.people}) for rule in self._rules]

    def channels(self, source: Path) -> tuple[str, ...]:
        files = list(source_files(source, IngestReport(), self._options.limits))
        for rule in self._rules:
            if not rule.optional and not any(_matches(file, rule) for file in files):
                raise UserError(
                    f"{self._options.mapping}: {rule.section}.files = {rule.files!r} matches none of the {len(files)} "
                    f"files of {source}. Patterns are relative to the source folder."
                )
        used = {index for file in files for index, _ in self._rules_of(file)}
        tables = [table for index, table in enumerate(self._mapping.tables) if index in used or not table.optional]
        return tuple(dict.fromkeys(name for table in tables for name in table.channels))

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonTables]:
        people, files = self.sort_by_person(source, report)
        for label, is_used in files.items():
            if not is_used:
                report.ignore(label, "matched by no section of the mapping")
        recorded = {
            name: key
            for name, key in people.items()
            if key.sample_slices or any(self._is_table(index) for index, _ in key.files)
        }
        if others := len(people) - len(recorded):
            report.note(f"{others} people have labels or events but no recording; they are left out.")
        yield from recorded.values()

    def sort_by_person(
        self, source: Path, report: IngestReport, recorded: Iterable[str] = ()
    ) -> tuple[dict[str, PersonTables], dict[str, bool]]:
        """Everyone of the source in order of the ids, and for each file whether the mapping uses it.

        `recorded` are the ids of recordings that the mapping annotates.

        Raises:
          AmbiguousPeople: as by `Roster.people`.
        """
        if self._options.scratch is None:
            raise UserError("the table reader needs a scratch folder (ReaderOptions.scratch).")
        for sentence in (*unused_keys(self._mapping), *self._unused_options()):
            report.note(sentence)
        roster = Roster(self.people_rule)
        roster.add(recorded, "recordings", "the recordings")
        own: dict[str, list[tuple[int, SourceFile]]] = {}
        samples, events = RowsByPerson(self._options.scratch), RowsByPerson(self._options.scratch)
        labels: dict[str, PersonLabels] = {}
        label_files: dict[str, dict[str, None]] = {}
        files: dict[str, bool] = {}
        self._look_at_dates(source)
        for file in source_files(source, report, self._options.limits):
            matching = self._rules_of(file)
            files[file.label] = bool(matching)
            for index, rule in matching:
                person, fault = rule.person.of_file(file.label) if rule.person.is_of_files else (None, "")
                if person:
                    roster.add([person], rule.section, file.label)
                if fault:
                    report.set_aside(file.label, f"{rule.section}.person {fault}")
                elif person and not isinstance(rule, LabelRule):
                    own.setdefault(person, []).append((index, file))
                else:
                    with reading(file.label, report):
                        if isinstance(rule, LabelRule):
                            origin = self._origin(file, person, Calendar(), report)
                            for rule_of_file, block in self._blocks(file, rule, report):
                                found = dict[str, PersonLabels]()
                                add_labels(block, rule_of_file, found, origin)
                                roster.add(found, rule.section, file.label)
                                for spelling, more in found.items():
                                    labels.setdefault(spelling, []).extend(more)
                                    label_files.setdefault(spelling, {})[file.label] = None
                        else:
                            for rows in self._rows(index, file, None, Calendar(), report):
                                roster.add(rows[PERSON].unique(), rule.section, file.label)
                                (samples if isinstance(rule, TableRule) else events).add(rows, file.label)
        people = {
            name: PersonTables(
                name,
                [pair for spelling in spellings for pair in own.get(spelling, ())],
                [piece for spelling in spellings for piece in samples.slices.get(spelling, ())],
                [piece for spelling in spellings for piece in events.slices.get(spelling, ())],
                [found for spelling in spellings for found in labels.get(spelling, ())],
                [label for spelling in spellings for label in label_files.get(spelling, ())],
            )
            for name, spellings in roster.people(report).items()
        }
        return people, files

    def person(self, key: PersonTables) -> str:
        return key.person

    def read(self, _: Path, key: PersonTables, report: IngestReport) -> PersonRecord | None:
        record = self.annotations(key, report)
        if not record.series:
            report.people_without_data += 1
            return None
        return record

    def annotations(self, key: PersonTables, report: IngestReport, recorded: Clock | None = None) -> PersonRecord:
        """Everything of one person that the mapping describes; a mapping without tables gives no series.

        Args:
          recorded: the clock of the person's recordings, where another reader reads them.
        """
        calendar, frames, event_frames = Calendar(), list[pl.DataFrame](), list[pl.DataFrame]()
        for index, file in sorted(key.files, key=lambda pair: self._order(pair[0])):
            with reading(file.label, report):
                rows = self._rows(index, file, key.person, calendar, report)
                (frames if self._is_table(index) else event_frames).extend(rows)
        # Rows of shared files were read before their people were known, with Monday as day 0.
        for label in (*(piece.source for piece in (*key.sample_slices, *key.event_slices)), *key.label_files):
            report.use(label)
        if key.sample_slices:
            frames.append(load_slices(key.sample_slices).with_columns(pl.col("second") + calendar.shift))
        if key.event_slices:
            event_frames.append(load_slices(key.event_slices).with_columns(pl.col("start", "end") + calendar.shift))
        samples, events = (pl.concat(each) if each else pl.DataFrame() for each in (frames, event_frames))
        labels = label_times(key.labels).with_columns(pl.col("second") + calendar.shift)
        clock = self._clock(samples, events, labels, recorded or Clock())
        floating = pl.concat(is_floating(each) for each in (samples, events, labels.drop_nulls("second")))
        is_wall = not clock.is_known and floating.any()
        if is_wall and not floating.all():
            report.note(MIXED_CLOCKS)
        samples, events, labels = (on_clock(each, clock) for each in (samples, events, labels))
        found = [(second, about) for second, (_, about, _) in zip(labels["second"], key.labels, strict=True)]
        about_person: dict[str, float | str] = {}
        for second, about in found:
            if second is None:
                report.add_labels(about_person, about)
        return PersonRecord(
            key.person,
            sample_series(samples, self._mapping.tables, report) if len(samples) else (),
            joined_events(events),
            about_person,
            clock.time_zone,
            clock.offsets,
            is_wall,
            tuple((int(second // 60), about) for second, about in found if second is not None),
            identity=self.people_rule.identity(key.person),
        )

    def _clock(self, samples: pl.DataFrame, events: pl.DataFrame, labels: pl.DataFrame, recorded: Clock) -> Clock:
        """The person's clock: what the user names, where the labels say they live, what their recordings say."""
        if self._mapping.relative:
            return Clock("UTC")  # of a calendar of its own
        if self.time_zone:
            return Clock(self.time_zone)
        homes = labels.filter(pl.col("second").is_null()).with_columns(second=0.0).drop_nulls("clock").tail(1)
        clocks = [clock_of(homes), recorded, *map(clock_of, (samples, events, labels))]
        return next((clock for clock in clocks if clock.is_known), Clock())

    def _unused_options(self) -> Iterator[str]:
        """A sentence for each option of the command line that has no effect on the mapping's tables."""
        if self._options.date_order and not any(map(has_both_orders, self._rules)):
            yield "--date-order has no effect on the mapping: its formats say whether day or month comes first"
        if self._options.time_zone and self._mapping.relative:
            yield "--time-zone has no effect: relative times have no zone"

    def _look_at_dates(self, source: Path) -> None:
        """Finds the order of day and month in all files of the sections that leave it to them."""
        if any(map(has_both_orders, self._rules)):
            for file in source_files(source, IngestReport(), self._options.limits):
                for _, rule in self._rules_of(file):
                    self._dates.look(file, rule, self._layout(rule))

    def _rules_of(self, file: SourceFile) -> list[tuple[int, Rule]]:
        """The sections for a file, with their places in the mapping."""
        if file not in self._sections:  # which sections are for it takes reading its start once for each
            matching = [(index, rule) for index, rule in enumerate(self._rules) if _matches(file, rule)]
            self._sections[file] = [
                index for index, rule in matching if not rule.optional or self._has_columns(file, rule)
            ]
        return [(index, self._rules[index]) for index in self._sections[file]]

    def _has_columns(self, file: SourceFile, rule: FileRule) -> bool:
        try:
            return {*rule.used_columns} <= {*read_header(file, self._layout(rule)).names}
        except UnreadableFile:
            return False

    def _layout(self, rule: FileRule) -> Layout:
        return Layout(rule.separator, rule.header, rule.used_columns, self._mapping.aliases)

    def _is_table(self, index: int) -> bool:
        return isinstance(self._rules[index], TableRule)

    def _order(self, index: int) -> tuple[bool, bool]:
        """Files with a weekday come first, since they set the date of day 0 for those without; tables before events."""
        time = self._rules[index].time
        return not (time and time.weekday), not self._is_table(index)

    def _origin(self, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport) -> Origin:
        needs_clocks = not (self.time_zone or self._mapping.relative)
        return Origin(file.label, person, self.time_zone, calendar, report, needs_clocks)

    def _rows(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The samples or events of a file."""
        origin = self._origin(file, person, calendar, report)
        for rule, block in self._blocks(file, self._rules[index], report):
            if isinstance(rule, TableRule):
                yield sample_rows(block, rule, index, origin)
            elif isinstance(rule, EventRule):
                yield event_rows(block, rule, origin)

    def _blocks(self, file: SourceFile, rule: AnyRule, report: IngestReport) -> Iterator[tuple[AnyRule, pl.DataFrame]]:
        """The rule's columns of a file, block by block, and the rule with the file's time formats.

        A column that the file lacks costs its channel or label, and is empty; one without which no row can be read
        costs the file. UserError as by `DateOrders.formats` and `plain_numbers`.
        """
        layout = self._layout(rule)
        try:
            missing = missing_columns(file.label, rule, read_header(file, layout), report)
            rule = _with_zone(file, rule)
            if rule.time and not rule.time.counts:
                formats = self._dates.formats(file, rule, layout)
                rule = rule.model_copy(update={"time": rule.time.model_copy(update={"formats": formats})})
            report.use(file.label, f"{rule.section}: {rule.content}")
            for block in read_rows(file, rule.used_columns, report, layout):
                block = plain_numbers(block, rule, file.label, report)
                yield rule, block.with_columns(pl.lit(None, pl.String).alias(column) for column in missing)
        except UnreadableFile as error:
            report.set_aside(file.label, str(error))


def _with_zone(file: SourceFile, rule: AnyRule) -> AnyRule:
    """The rule with the time zones that the file's path says."""
    if rule.time and rule.time.time_zone:
        time = rule.time.model_copy(update={"time_zone": rule.time.time_zone.of_file(file.label)})
        rule = rule.model_copy(update={"time": time})
    if isinstance(rule, LabelRule) and rule.time_zone:
        rule = rule.model_copy(update={"time_zone": rule.time_zone.of_file(file.label)})
    return rule


def _matches(file: SourceFile, rule: FileRule) -> bool:
    """Whether the rule's glob matches. The members of a zip count as files in the zip's folder."""
    path = file.path if not file.member else str(Path(file.path).parent / file.member)
    return fnmatch.fnmatchcase(path, rule.files)
