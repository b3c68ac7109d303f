"""Base classes of readers of exports that people download, each of one person."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.minutes.recording import Recording, labels_about
from lsm_jax.ingest.people.exports import PersonFiles, person_of, sort_files
from lsm_jax.ingest.reader import PersonRecord, ReaderOptions
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock, changes_of_offset

_NO_RECORDING = "row of a person of whom no minute is recorded"


class PersonalReader(abc.ABC):
    """The people of exports of one person each (see `reader.Reader`)."""

    one_file_each = False  # see `person_of`

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options

    @abc.abstractmethod
    def reads(self, file: SourceFile) -> str:
        """Why a file is not read; "" for one that is."""

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonFiles]:
        named = []
        for file in source_files(source, report, self._options.limits):
            if reason := self.reads(file):
                report.ignore(file.label, reason)
            else:
                named.append((self.person_of(file, source), file))
        yield from sort_files(named, self._options.people, report, one_file_each=self.one_file_each)

    def person_of(self, file: SourceFile, source: Path) -> str:
        return person_of(file, source, one_file_each=self.one_file_each)

    def person(self, key: PersonFiles) -> str:
        return key.person


class RecordingReader(PersonalReader):
    """A reader whose files are added to the `Recording` of their person, one after another."""

    content: str  # what its files are, in messages: "FIT file"
    expected: str  # the same with names, in the refusal of a source that has none

    @abc.abstractmethod
    def channels_of(self, file: SourceFile) -> Iterable[str]:
        """The channels that a file which is read can hold."""

    @abc.abstractmethod
    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        """Adds what a file holds. UnreadableFile sets it aside; what was added before stays."""

    def new_recording(self) -> Recording:
        return Recording()

    def content_of(self, file: SourceFile) -> str:  # noqa: ARG002
        """What a file is taken for, in the report."""
        return self.content

    def add_files(self, files: Sequence[SourceFile], recording: Recording, report: IngestReport) -> None:
        """Adds the files of one person."""
        for file in files:
            report.use(file.label, self.content_of(file))
            recording.file, kept = file.label, report.rows_kept
            with reading(file.label, report):
                self.add_file(file, recording, report)
            recording.rows_kept[file.label] += report.rows_kept - kept

    def channels(self, source: Path) -> tuple[str, ...]:
        files = [file for file in source_files(source, IngestReport(), self._options.limits) if not self.reads(file)]
        channels = dict.fromkeys(name for file in files for name in self.channels_of(file))
        if not channels:
            what = f"{self.content} with a channel of the registry" if files else self.content
            raise UserError(f"{source} holds no {what}: expected {self.expected}.")
        return tuple(channels)

    def read(self, _: Path, key: PersonFiles, report: IngestReport) -> PersonRecord | None:
        recording = self.new_recording()
        self.add_files(key.files, recording, report)
        series = recording.series(report)
        if not any(len(each.minute) for each in series):
            report.people_without_data += 1
            for label, rows in recording.rows_kept.items():
                report.unkeep(_NO_RECORDING, label, rows=rows)
            return None
        clock = Clock(self._options.time_zone or recording.time_zone, changes_of_offset(recording.offsets))
        return PersonRecord(
            key.person,
            series,
            recording.all_events(report),
            labels_about(recording.born, recording.sex, series),
            time_zone=clock.time_zone,
            offsets=clock.offsets,
            is_wall_clock=recording.is_wall_clock,
            day_labels=recording.day_labels(clock, report),
            identity=self._options.people.identity(key.person),
        )
