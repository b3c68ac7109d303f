"""What an ingest would write, before it is written: every row is read, by the same code, and nothing is kept."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt

from lsm_jax.errors import UserError
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import PersonRecord
from lsm_jax.ingest.report import IngestReport


@dataclasses.dataclass
class PersonPreview:
    """One person. The id is the raw one: it is for the terminal of its owner only."""

    person: str
    files: list[str] = dataclasses.field(default_factory=list)
    days: list[dt.date] = dataclasses.field(default_factory=list)  # local days with an observed value, in order
    observed_minutes: int = 0  # with a value of any channel
    zone: str = ""
    events: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)
    labels: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Preview:
    """Everyone of a source, what each file is taken for, and the report of all rows."""

    people: list[PersonPreview]
    files: dict[str, str]
    report: IngestReport


def preview(people: People, report: IngestReport) -> Preview:
    """Reads a source to its end. Memory holds one person at a time.

    Args:
      report: gets the counts; it is complete also where this raises.

    Raises:
      UserError: what `lsm ingest` would refuse, a source without a single day among it.
    """
    found, files = [], dict[str, str]()
    for key in people.keys(report):
        own, person = IngestReport(), PersonPreview(people.reader.person(key))

        def show(record: PersonRecord, person: PersonPreview = person) -> None:
            person.zone = record.time_zone
            person.events.update((event.kind, event.name) for event in record.events)
            person.labels.update(record.labels, *(labels for _, labels in record.day_labels))

        offsets = set()
        for window in people.person_windows(key, own, show):
            offset = dt.timedelta(minutes=window.utc_offset_minutes)
            offsets.add(offset)
            person.days.append((window.start + offset).date())
            person.observed_minutes += int(window.observed.any(1).sum())
        if own.people_in_utc or own.people_on_wall_clock:
            person.zone = "not known"
        elif not person.zone:
            person.zone = ", ".join(str(dt.timezone(offset)) for offset in sorted(offsets))
        person.files = list(own.files_used)
        files |= own.files_used
        report.merge(own)
        found.append(person)
    files = {file: what or report.files_used.get(file, "") for file, what in (report.files_used | files).items()}
    report.check()
    if not report.days:
        raise UserError("no day has an observed value: lsm ingest would refuse this source.")
    return Preview(found, files, report)
