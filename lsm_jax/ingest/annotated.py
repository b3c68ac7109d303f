"""Gives the recordings of any format the events and labels of a mapping file: a survey, a diary, questionnaires."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

from lsm_jax.ingest.reader import PersonRecord, Reader
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.table import PersonTables, TableReader


class AnnotatedPerson(NamedTuple):
    """The key of one person: that of the recordings, and the person's events and labels."""

    recording: Hashable
    tables: PersonTables | None


class AnnotatedReader:
    """A reader of recordings whose mapping has events and labels (see `reader.Reader`)."""

    def __init__(self, recordings: Reader, tables: TableReader) -> None:
        self._recordings = recordings
        self._tables = tables

    def channels(self, source: Path) -> tuple[str, ...]:
        self._tables.channels(source)
        return self._recordings.channels(source)

    def people(self, source: Path, report: IngestReport) -> Iterator[AnnotatedPerson]:
        recorded = list(self._recordings.people(source, report))
        tables, files = self._tables.sort_by_person(source, report)
        for label, is_used in files.items():
            if is_used:
                report.claim(label)
        for key in recorded:
            yield AnnotatedPerson(key, tables.pop(self._recordings.person(key), None))
        if tables:
            report.note(f"{len(tables)} people have labels or events but no recording; they are left out.")

    def person(self, key: AnnotatedPerson) -> str:
        return self._recordings.person(key.recording)

    def read(self, source: Path, key: AnnotatedPerson, report: IngestReport) -> PersonRecord | None:
        record = self._recordings.read(source, key.recording, report)
        if record is None or key.tables is None:
            return record
        more = self._tables.annotations(key.tables, report)
        labels = {**record.labels, **more.labels}
        return dataclasses.replace(
            record, events=(*record.events, *more.events), labels=labels, day_labels=more.day_labels
        )
