"""Reads any table of minute values that a mapping file describes.

Where the file name holds the person's id, a person's files are read when the person is read. Where a column holds it,
one streaming pass first sorts the rows by person on disk. Each file (or each value of a `sensor` column) is one sensor;
`minutes.days` merges the sensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.cells import PERSON
from lsm_jax.ingest.described.columns import Calendar, Origin
from lsm_jax.ingest.described.events import PersonLabels, add_labels, event_rows, joined_events, label_times
from lsm_jax.ingest.described.samples import sample_rows, sample_series
from lsm_jax.ingest.described.sections import Sections
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.mapping.file import MappingFile, load_mapping
from lsm_jax.ingest.mapping.sections import EventRule, LabelRule, TableRule
from lsm_jax.ingest.mapping.unused_keys import unused_keys
from lsm_jax.ingest.people.roster import Roster
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.by_person import RowsByPerson, Slice, load_slices
from lsm_jax.ingest.times.clock import Clock, clock_of, is_floating, on_clock

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
        self.time_zone = options.time_zone or mapping.one_time_zone
        self.people_rule = options.people.over(mapping.people)
        rules = mapping.rules
        if options.people.is_of_files and is_built_in:
            rules = [rule.model_copy(update={"person": options.people}) for rule in rules]
        self._sections = Sections(rules, mapping.aliases, options.date_order)

    def channels(self, source: Path) -> tuple[str, ...]:
        files = list(source_files(source, IngestReport(), self._options.limits))
        self._sections.check(files, source, self._options.mapping)
        used = {index for file in files for index, _ in self._sections.of_file(file)}
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
        self._sections.look_at_dates(source, self._options.limits)
        for file in source_files(source, report, self._options.limits):
            matching = self._sections.of_file(file)
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
                            for rule_of_file, block in self._sections.blocks(file, rule, report):
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
            joined_events(events, report),
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
        if self._options.date_order and not self._sections.leaves_date_order_open:
            yield "--date-order has no effect on the mapping: its formats say whether day or month comes first"
        if self._options.time_zone and self._mapping.relative:
            yield "--time-zone has no effect: relative times have no zone"

    def _is_table(self, index: int) -> bool:
        return isinstance(self._sections.rules[index], TableRule)

    def _order(self, index: int) -> tuple[bool, bool]:
        """Files with a weekday come first, since they set the date of day 0 for those without; tables before events."""
        time = self._sections.rules[index].time
        return not (time and time.weekday), not self._is_table(index)

    def _origin(self, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport) -> Origin:
        needs_clocks = not (self.time_zone or self._mapping.relative)
        return Origin(file.label, person, self.time_zone, calendar, report, needs_clocks)

    def _rows(
        self, index: int, file: SourceFile, person: str | None, calendar: Calendar, report: IngestReport
    ) -> Iterator[pl.DataFrame]:
        """The samples or events of a file."""
        origin = self._origin(file, person, calendar, report)
        for rule, block in self._sections.blocks(file, self._sections.rules[index], report):
            if isinstance(rule, TableRule):
                yield sample_rows(block, rule, index, origin)
            elif isinstance(rule, EventRule):
                yield event_rows(block, rule, origin)
