"""Reading people on Apache Beam: the same per-person code, on as many workers as the runner has.

Workers read the source and the scratch folder by path, so with a runner of several machines both must lie on a
file system that all of them see. Listing people (and sorting shared files by person) happens where the pipeline
is built.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from lsm_jax.ingest.base import Reader
from lsm_jax.ingest.pipeline import person_windows
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import Window


class ReadPeople(beam.DoFn):
    """A person's key to their day windows; the person's report goes to the output `REPORTS`."""

    REPORTS = "reports"

    def __init__(self, reader: Reader, source: Path, channels: Sequence[str], salt: str) -> None:
        self._reader, self._source, self._channels, self._salt = reader, source, tuple(channels), salt

    def process(self, element: Hashable, *_: Any, **__: Any) -> Iterator[Window | Any]:
        report = IngestReport()
        yield from person_windows(self._reader, self._source, element, self._channels, self._salt, report)
        yield beam.pvalue.TaggedOutput(self.REPORTS, report)


def windows_and_report(
    pipeline: beam.Pipeline,
    reader: Reader,
    source: Path,
    keys: Sequence[Hashable],
    channels: Sequence[str],
    salt: str,
    report_file: Path,
) -> beam.PCollection:
    """The windows of all people as a collection; their merged report is written to `report_file` as JSON."""
    people = pipeline | "People" >> beam.Create(keys) | "Spread" >> beam.Reshuffle()
    read = people | "Read" >> beam.ParDo(ReadPeople(reader, source, channels, salt)).with_outputs(
        ReadPeople.REPORTS, main="windows"
    )
    _ = (
        read[ReadPeople.REPORTS]
        | "Merge reports" >> beam.CombineGlobally(merged)
        | "Write report" >> beam.Map(_write, str(report_file))
    )
    return read["windows"]


def merged(reports: Iterable[IngestReport]) -> IngestReport:
    """One report of many."""
    total = IngestReport()
    for report in reports:
        total.merge(report)
    return total


def _write(report: IngestReport, path: str) -> None:
    Path(path).write_text(json.dumps(report.to_json()), encoding="utf-8")
