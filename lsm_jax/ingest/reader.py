"""The interface of a reader: its options, its methods, and the record of one person that it returns.

A reader lists the people of a source and then reads one person at a time, so memory depends on the person and not on
the study. Readers, keys and reports can be pickled: the same code runs in one process or on Beam workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.ingest.files.source import DEFAULT_LIMITS, Limits, SourceFile
from lsm_jax.ingest.people.rules import DEFAULT_PEOPLE, PeopleRule
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock, Offsets


@dataclasses.dataclass(frozen=True)
class Series:
    """Minute values of one channel from one sensor, as `minutes.series.minute_series` makes them."""

    channel: str  # canonical name
    minute: Int[np.ndarray, " n"]  # since the Unix epoch, UTC; each at most once, in order where there is a value
    value: Float[np.ndarray, " n"]  # float32 in the registry's unit and range; NaN where missing


Labels = Mapping[str, float | str]


@dataclasses.dataclass(frozen=True)
class RecordEvent:
    """An event in absolute time: minutes since the Unix epoch, UTC, which may have a fraction; end exclusive."""

    kind: str
    name: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class PersonRecord:
    """Everything of one person, before it is cut into windows."""

    person: str  # the raw id; it is hashed before it is written anywhere
    series: tuple[Series, ...]  # several of one channel (overlapping sensors) are merged by `minutes.days.day_windows`
    events: tuple[RecordEvent, ...] = ()  # logged or derived
    labels: Labels = dataclasses.field(default_factory=dict)  # about the person
    time_zone: str = ""  # IANA name of where it was worn; "" where none is known, which the report says
    offsets: Offsets = ()  # local minus UTC as the recording itself says it; used where no zone is known
    is_wall_clock: bool = False  # no zone is known, and times of the wall clock are written as if they were UTC
    day_labels: tuple[tuple[int, Labels], ...] = ()  # about the day that holds this minute since the epoch, UTC
    identity: str = ""  # what the pseudonym is made of; "": `people.ids.identity` of it

    @property
    def clock(self) -> Clock:
        """What cuts the person's days."""
        return Clock(self.time_zone, self.offsets)


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """The user's options for a source."""

    time_zone: str | None = None  # IANA name of the files' wall clock; None: what the files and the mapping state
    mapping: Path | None = None  # the mapping file: what tables mean, and events and labels for any format
    scratch: Path | None = None  # an empty folder for temporary files (rows by person); the caller removes it
    limits: Limits = DEFAULT_LIMITS  # sizes above which a file is refused
    date_order: Literal["day", "month"] | None = None  # what comes first in dates, for files that do not tell
    people: PeopleRule = DEFAULT_PEOPLE  # who is who: the person of a path, and which spellings are one person
    prefer: tuple[str, ...] = ()  # parts of names of the sources of a signal that come before the others, best first


class Reader(Protocol):
    """One format. It is built from `ReaderOptions`, holds no open files and can be pickled."""

    def channels(self, source: Path) -> tuple[str, ...]:
        """Canonical channels that this source can yield, in the column order of the windows.

        Raises:
          UserError: the source is not of this format.
        """

    def people(self, source: Path, report: IngestReport) -> Iterator[Hashable]:
        """A small key for each person, which can be pickled; each person once.

        Files that hold many people are sorted by person into `options.scratch` here, in one streaming pass.
        """

    def person(self, key: Any, /) -> str:
        """The raw id of a key's person."""

    def read(self, source: Path, key: Any, report: IngestReport, /) -> PersonRecord | None:
        """Everything of one person; None (and a note in the report) when nothing is usable."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """That a source holds files of a format."""

    title: str  # what people call the format: "Apple Health export"
    files: tuple[SourceFile, ...]  # those that the format recognises, at least one


LooksLike = Callable[[Sequence[SourceFile]], Evidence | None]
