"""Reads files that a test writes, as `lsm ingest` does, up to the windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.minutes.days import day_windows
from lsm_jax.ingest.reader import ReaderOptions
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
    def windows(self) -> list[Window]:
        return [day.window for days in self.people.values() for day in days]

    @property
    def said(self) -> str:
        """The report in words."""
        return "\n".join(self.report.sentences())


Files = Mapping[str, str | bytes | pl.DataFrame]  # a data frame becomes a Parquet file


def write_source(folder: Path, files: Files, mapping: str = "") -> Path | None:
    """Writes the files into `folder`/source, and the mapping file beside it, whose path is returned."""
    (folder / "source").mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        file = folder / "source" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pl.DataFrame):
            content.write_parquet(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "m.toml").write_text(mapping)
    return folder / "m.toml" if mapping else None


def read_source(name: str, folder: Path, files: Files, mapping: str = "", **options: Any) -> Reading:
    """Writes the files into a source, and reads it with the format of this name."""
    path = write_source(folder, files, mapping)
    return read_folder(name, folder / "source", folder / "scratch", mapping=path, **options)


def read_folder(name: str, source: Path, scratch: Path, **options: Any) -> Reading:
    """Reads a source with the format and the `ReaderOptions` of these names. All rows must be accounted for."""
    scratch.mkdir(exist_ok=True)
    report = IngestReport()
    reader = make_reader(name, ReaderOptions(scratch=scratch, **options))
    channels = reader.channels(source)
    people = {}
    for key in reader.people(source, report):
        record = reader.read(source, key, report)
        windows = day_windows(record, channels, "s", report) if record else ()
        people[reader.person(key)] = [Day(window) for window in windows]
    report.check()
    return Reading(people, report)


def values(window: Window, channel: str) -> dict[int, float]:
    """The value of each minute that is observed."""
    column = window.channels.index(channel)
    return {int(i): float(window.values[i, column]) for i in np.flatnonzero(window.observed[:, column])}
