"""Gives the recordings of any format the events and labels of a mapping file: a survey, a diary, questionnaires."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lsm_jax.ingest.described.reader import MIXED_CLOCKS, PersonTables, TableReader
from lsm_jax.ingest.reader import PersonRecord, Reader
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock


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
        ids = [self._recordings.person(key) for key in recorded]
        tables, files = self._tables.sort_by_person(source, report, ids)
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
        if record is None:
            return None
        record = dataclasses.replace(record, identity=self._tables.people_rule.identity(record.person))
        if key.tables is None:
            return record
        more = self._tables.annotations(key.tables, report, record.clock)
        if not more.clock.is_known and more.is_wall_clock and not record.is_wall_clock:
            report.note(MIXED_CLOCKS)
        record = _on_clock(record, more.clock)
        labels = dict(record.labels)
        report.add_labels(labels, more.labels)
        return dataclasses.replace(
            record,
            events=(*record.events, *more.events),
            labels=labels,
            day_labels=(*record.day_labels, *more.day_labels),
        )


def _on_clock(record: PersonRecord, clock: Clock) -> PersonRecord:
    """The record with its days cut by this clock; wall-clock times of no known zone are placed on it."""
    if not clock.is_known or clock == record.clock:
        return record
    placed = dataclasses.replace(record, time_zone=clock.time_zone, offsets=clock.offsets, is_wall_clock=False)
    if not record.is_wall_clock:
        return placed

    def utc(minutes: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return clock.utc_seconds(60.0 * minutes) / 60

    series = tuple(dataclasses.replace(each, minute=utc(each.minute).astype(np.int64)) for each in record.series)
    starts, ends = (utc(np.array([getattr(event, side) for event in record.events])) for side in ("start", "end"))
    moved = zip(record.events, starts.tolist(), ends.tolist(), strict=True)
    events = tuple(dataclasses.replace(event, start=start, end=end) for event, start, end in moved)
    days = utc(np.array([minute for minute, _ in record.day_labels])).astype(np.int64).tolist()
    day_labels = tuple((minute, found) for minute, (_, found) in zip(days, record.day_labels, strict=True))
    return dataclasses.replace(placed, series=series, events=events, day_labels=day_labels)
