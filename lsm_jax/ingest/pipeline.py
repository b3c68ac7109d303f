"""From a source to windows: one person after another, or on Beam workers (`readers.beam`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from lsm_jax.ingest.base import Reader
from lsm_jax.ingest.days import day_windows
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import Window


def person_windows(
    reader: Reader, source: Path, key: Hashable, channels: Sequence[str], salt: str, report: IngestReport
) -> Iterator[Window]:
    """All day windows of one person; what happened to their rows is added to the report."""
    record = reader.read(source, key, report)
    if record is not None:
        yield from day_windows(record, channels, salt, report)


def source_windows(
    reader: Reader,
    source: Path,
    channels: Sequence[str],
    salt: str,
    report: IngestReport,
    after_person: Callable[[], None] = lambda: None,
) -> Iterator[Window]:
    """Windows of everybody in a source; memory holds one person at a time."""
    for key in reader.people(source, report):
        yield from person_windows(reader, source, key, channels, salt, report)
        after_person()
