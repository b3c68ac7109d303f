"""The reader: what every format implements, and where a format is found by name.

A reader lists people cheaply and reads one person at a time, so memory follows the person and not the
study. Readers, keys and reports are picklable: the same code runs in one process or on Beam workers.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Protocol

from lsm_jax.errors import UserError, nearest
from lsm_jax.ingest.files import DEFAULT_LIMITS, Limits
from lsm_jax.ingest.record import PersonRecord
from lsm_jax.ingest.report import IngestReport

# name -> module:class; imported on use, so that one format's libraries do not slow another's start.
FORMATS = {
    "empatica": "lsm_jax.ingest.empatica:EmpaticaReader",
    "fitbit": "lsm_jax.ingest.fitbit:FitbitReader",
    "table": "lsm_jax.ingest.table:TableReader",
}


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """What the person at the command line says about a source.

    Attributes:
      time_zone: IANA name of the wall clock the files are written in; None: UTC, or what the files say.
      mapping: the mapping file of the `table` reader.
      scratch: an existing empty folder for temporary files, such as rows sorted by person; the caller removes it.
      limits: sizes beyond which a file is refused.
    """

    time_zone: str | None = None
    mapping: Path | None = None
    scratch: Path | None = None
    limits: Limits = DEFAULT_LIMITS


class Reader(Protocol):
    """One format. Built from `ReaderOptions`; holds no open files and pickles."""

    def __init__(self, options: ReaderOptions) -> None: ...

    def channels(self, source: Path) -> tuple[str, ...]:
        """Canonical channels this source can yield, in the order the windows will hold them.

        Raises:
          UserError: the source is nothing this reader can read.
        """

    def people(self, source: Path, report: IngestReport) -> Iterator[Hashable]:
        """A small picklable key per person, each person once.

        Files that hold many people are sorted by person into `options.scratch` here, in one streaming pass.
        """

    def read(self, source: Path, key: Any, report: IngestReport, /) -> PersonRecord | None:
        """Everything of one person; None (and a note in the report) when nothing is usable."""


def reader(name: str, options: ReaderOptions) -> Reader:
    """The reader of this format name.

    Raises:
      UserError: no such format, or options the format cannot work with.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}.{nearest(name, FORMATS)} Formats: {', '.join(sorted(FORMATS))}.")
    module, _, attribute = FORMATS[name].partition(":")
    built: Reader = getattr(importlib.import_module(module), attribute)(options)
    return built
