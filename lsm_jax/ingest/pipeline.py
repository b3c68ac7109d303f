"""From a source to day windows: one person after another in this process, or on Apache Beam.

On Beam the same code reads people on as many workers as the runner has. Workers open the source and the scratch folder
by path, so a runner of several machines needs a file system that all of them see. People are listed (and shared files
sorted by person) where the pipeline is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import secrets
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm_jax.errors import RunError, UserError
from lsm_jax.ingest.files.faults import failure, reading
from lsm_jax.ingest.minutes.days import day_windows
from lsm_jax.ingest.reader import PersonRecord, Reader
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import Window

if TYPE_CHECKING:
    import apache_beam as beam


@dataclasses.dataclass(frozen=True)
class People:
    """All people of a source. `channels` are the windows' columns; `salt` keys the pseudonyms."""

    reader: Reader
    source: Path
    channels: tuple[str, ...]
    salt: str

    def windows(self, report: IngestReport) -> Iterator[Window]:
        """Day windows of all people; memory holds one person at a time. RunError as by `IngestReport.check`."""
        for key in self.keys(report):
            yield from self.person_windows(key, report)
        report.check()

    def beam_windows(self, report: IngestReport, report_file: Path) -> Callable[[beam.Pipeline], beam.PCollection]:
        """A function from a Beam pipeline to the collection of all people's windows.

        Args:
          report: what listing the people adds to the report.
          report_file: where the pipeline writes the merged reports of the people, as JSON.

        Raises:
          UserError: the source holds no readable person.
        """
        import apache_beam as beam

        keys = list(self.keys(report))
        if not keys:
            raise UserError(f"{self.source} holds no person this reader can read; the report above says why.")

        def windows(pipeline: beam.Pipeline) -> beam.PCollection:
            spread = pipeline | "People" >> beam.Create(keys) | "Spread" >> beam.Reshuffle()
            read = spread | "Read" >> beam.FlatMap(self._windows_then_report).with_outputs("reports", main="windows")
            merged = read["reports"] | "Merge reports" >> beam.CombineGlobally(
                lambda reports: functools.reduce(IngestReport.merge, reports, IngestReport())
            )
            _ = merged | "Write report" >> beam.Map(IngestReport.write, report_file)
            return read["windows"]

        return windows

    def keys(self, report: IngestReport) -> Iterator[Hashable]:
        """The reader's key of each person."""
        try:
            yield from self.reader.people(self.source, report)
        except (UserError, RunError, OSError):
            raise
        except Exception as error:
            raise RunError(
                f"the reader failed while it listed the people of {self.source} ({failure(error)}); please report it."
            ) from error

    def person_windows(
        self, key: Hashable, report: IngestReport, show: Callable[[PersonRecord], None] | None = None
    ) -> Iterator[Window]:
        """The windows of one person; one on whom the reader fails is set aside. `show` is given the person's record."""
        is_read = False
        with reading("a person", report, whole=True):
            record = self.reader.read(self.source, key, report)
            if record is not None:
                if show:
                    show(record)
                yield from day_windows(record, self.channels, self.salt, report)
            is_read = True
        report.people_set_aside += not is_read

    def _windows_then_report(self, key: Hashable) -> Iterator[Window | Any]:
        import apache_beam as beam

        report = IngestReport()
        yield from self.person_windows(key, report)
        yield beam.pvalue.TaggedOutput("reports", report)


def pseudonym_salt(out: Path) -> str:
    """The random key of the pseudonyms, made once and kept in `OUT.salt`, readable by its owner only.

    The file is not part of the dataset, so that a receiver of the dataset cannot test ids against the pseudonyms. It is
    kept so that ingesting again gives a person the same pseudonym and the same split.

    Raises:
      UserError: the file is empty.
      OSError: it cannot be written.
    """
    path = out.parent / f"{out.name}.salt"
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(16) + "\n")
        except OSError:
            path.unlink()
            raise
    salt = path.read_text(encoding="utf-8").strip()
    if not salt:
        raise UserError(f"{path} is empty: it should hold the salt of the pseudonyms. Remove it, or give --salt.")
    return salt


def dataset_name(out: Path) -> str:
    """A dataset name made from the folder's name."""
    name = re.sub(r"[^a-z0-9_]+", "_", out.name.lower()).strip("_")
    return name if name[:1].isalpha() else f"dataset_{name}"
