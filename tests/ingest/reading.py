"""Reads files that a test writes, as `lsm ingest` does, up to the windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from lsm_jax.ingest.days import day_windows
from lsm_jax.ingest.reader import ReaderOptions, make_reader
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import Window


@dataclasses.dataclass(frozen=True)
class Day:
    window: Window

    def observed(self, channel: str) -> np.ndarray:
        return self.window.observed[:, self.window.channels.index(channel)]

    def values(self, channel: str) -> np.ndarray:
        """1440 values; NaN where nothing is observed."""
        return np.where(self.observed(channel), self.window.values[:, self.window.channels.index(channel)], np.nan)

    @property
    def events(self) -> list[tuple[str, str, float, float]]:
        return [(event.kind, event.name, event.start, event.end) for event in self.window.events]


@dataclasses.dataclass(frozen=True)
class Reading:
    people: dict[str, list[Day]]  # by raw id
    report: IngestReport

    def only(self, person: str) -> Day:
        """The one day of a person."""
        (day,) = self.people[person]
        return day

    @property
    def said(self) -> str:
        """The report in words."""
        return "\n".join(self.report.sentences())


def read_source(
    name: str,
    folder: Path,
    files: dict[str, str | bytes],
    *,
    time_zone: str | None = None,
    date_order: str | None = None,
) -> Reading:
    """Writes the files into a source, and reads it with the format of this name."""
    source, scratch = folder / "source", folder / "scratch"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    scratch.mkdir(exist_ok=True)
    report = IngestReport()
    reader = make_reader(name, ReaderOptions(time_zone, scratch=scratch, date_order=date_order))
    channels = reader.channels(source)
    people = {}
    for key in reader.people(source, report):
        record = reader.read(source, key, report)
        windows = day_windows(record, channels, "s", report) if record else ()
        people[reader.person(key)] = [Day(window) for window in windows]
    return Reading(people, report)
