"""Exports that people download, each of one person: whose a file is, and what its files hold until it is minutes."""

from __future__ import annotations

import abc
import dataclasses
import datetime as dt
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.clock import Clock, changes_of_offset, fixed_offset
from lsm_jax.ingest.days import Aggregate, minute_series
from lsm_jax.ingest.faults import reading
from lsm_jax.ingest.files import SourceFile, source_files
from lsm_jax.ingest.parse import Times
from lsm_jax.ingest.person import PeopleRule, Roster
from lsm_jax.ingest.reader import Labels, PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.sleep import Spell, sleep_events, sleep_series


def person_of(file: SourceFile, source: Path, *, one_file_each: bool = False) -> str:
    """The raw id of the person whose export the file is part of.

    It is the first folder below the source; a zip counts as a folder. Files that lie in the source itself are of the
    person that the source is named after or, with `one_file_each`, each of the person that it is named after itself.
    """
    place = PurePosixPath(file.path)
    if source.is_dir() and len(place.parts) > 1:
        return place.parts[0]
    if one_file_each:
        return _stem(file.member or file.path)
    if file.member or not source.is_dir():
        return _stem(file.path)
    return source.resolve().name


def _stem(path: str) -> str:
    """The name of a file without what says how it is written. Ids may have dots."""
    name = PurePosixPath(path).name
    return re.sub(r"(\.(csv|txt|tsv|json|fit|xml|zip|gz))+$", "", name, flags=re.IGNORECASE) or name


@dataclasses.dataclass(frozen=True)
class PersonFiles:
    """The key of one person: the raw id and the files."""

    person: str
    files: tuple[SourceFile, ...]


def sort_files(
    files: Sequence[tuple[str, SourceFile]], rule: PeopleRule, report: IngestReport, *, one_file_each: bool = False
) -> Iterator[PersonFiles]:
    """The files of each person, by the user's rule; files for which it finds nobody are set aside.

    Args:
      files: with the person as the format finds them, who counts where the user says nothing.
      one_file_each: see `person_of`.

    Raises:
      UserError: files lie in the source and in folders of it, so one person could be taken for several.
      AmbiguousPeople: as by `Roster.people`.
    """
    found: dict[str, list[SourceFile]] = defaultdict(list)
    roster = Roster(rule)
    for name, file in files:
        person, fault = rule.of_file(file.label) if rule.is_of_files else (name, "")
        if fault:
            report.set_aside(file.label, f"the rule of people {fault}")
            continue
        found[person].append(file)
        roster.add([person], "recordings", file.label)
    in_folders = {"/" in file.path or bool(file.member) for _, file in files}
    if not rule.is_of_files and len(found) > 1 and True in in_folders:
        if False in in_folders and not one_file_each:
            raise UserError(
                "files lie in the source itself and in folders of it: of one person, or of several? Say it: --person "
                "NAME for one, --person '{person}' for one person of each folder and file."
            )
        report.note(
            f"{len(found)} people were found, one for each folder of the source. --person NAME says that all files are "
            "of one person, --person '*/{person}' that the second folder is the person."
        )
    for person, spellings in roster.people(report).items():
        yield PersonFiles(person, tuple(file for spelling in spellings for file in found[spelling]))


def labels_about(born: str, sex: str, series: Iterable[Series]) -> dict[str, float | str]:
    """Age on the first day, and sex, where they are told. The birth date itself is not kept.

    Args:
      born: a date such as 1980-06-01.
      sex: "female" or "male", in any case of letters.
    """
    labels: dict[str, float | str] = {}
    minutes = [int(each.minute.min()) for each in series if len(each.minute)]
    try:
        birth = dt.date.fromisoformat(born)
    except ValueError:
        pass
    else:
        if minutes:
            first = dt.datetime.fromtimestamp(60 * min(minutes), dt.UTC).date()
            had_birthday = (first.month, first.day) >= (birth.month, birth.day)
            labels["age"] = float(first.year - birth.year - (not had_birthday))
    if sex.upper() in ("FEMALE", "MALE"):
        labels["sex"] = sex[0].upper()
    return labels


class _Sensor(NamedTuple):
    """Whose samples are of one stream; those of several sensors are merged."""

    channel: str
    sensor: str
    aggregate: Aggregate | None
    period_minutes: float | None


class Recording:
    """What the files of one person hold: samples by sensor, stages of sleep, events, labels of days, local offsets."""

    def __init__(self) -> None:
        self.events: list[RecordEvent] = []
        self.finished: list[Series] = []  # minute values as they are
        self.is_wall_clock = False  # the files have wall-clock times, of which no zone is known
        self._day_labels: list[tuple[float, Labels, bool]] = []
        self.offsets: dict[int, int] = {}  # minute since the epoch, UTC -> minutes of local minus UTC, from there on
        # (seconds, values, lengths) of each sensor
        self._samples: dict[_Sensor, tuple[list[float], list[float], list[float]]] = defaultdict(lambda: ([], [], []))
        self.spells: set[Spell] = set()

    def add(
        self,
        channel: str,
        second: Sequence[float],
        value: Sequence[float],
        *,
        length: Sequence[float] = (),
        sensor: str = "",
        aggregate: Aggregate | None = None,
        period_minutes: float | None = None,
    ) -> None:
        """Adds samples of a channel, as `days.minute_series` takes them.

        Args:
          length: seconds that each lasts; empty where that is not known.
          sensor: what recorded them. Sensors of a channel are merged.
        """
        seconds, values, lengths = self._samples[_Sensor(channel, sensor, aggregate, period_minutes)]
        seconds.extend(second)
        values.extend(value)
        lengths.extend(length or (math.nan,) * len(second))

    def add_day_labels(self, second: float, labels: Labels, *, is_wall_clock: bool = False) -> None:
        """Adds labels of the day of a time: seconds since the epoch, UTC or (a wall clock of no known zone) local."""
        self._day_labels.append((second, labels, is_wall_clock))

    def add_clocks(self, times: Times) -> None:
        """Notes the offsets that times are written with, where they change."""
        table = pl.DataFrame({"second": times.second, "clock": times.clock}).drop_nulls()
        for second, clock in table.filter((pl.col("clock") != pl.col("clock").shift()).fill_null(True)).iter_rows():
            if (offset := fixed_offset(clock)) is not None:
                self.offsets[int(second // 60)] = offset

    def day_labels(self, clock: Clock) -> tuple[tuple[int, Labels], ...]:
        """(minute since the epoch, UTC; labels), with times of a wall clock placed on this one."""
        wall = clock.utc_seconds(np.array([second for second, _, _ in self._day_labels], np.float64)).tolist()
        return tuple(
            (int((local if is_wall else second) // 60), labels)
            for local, (second, labels, is_wall) in zip(wall, self._day_labels, strict=True)
        )

    def series(self, report: IngestReport) -> tuple[Series, ...]:
        """Minute values of every channel and sensor."""
        made = []
        for sensor, samples in self._samples.items():
            second, value, length = (np.array(column, np.float64) for column in samples)
            series = minute_series(
                sensor.channel,
                second,
                value,
                report,
                period_minutes=sensor.period_minutes,
                length=length,
                aggregate=sensor.aggregate,
            )
            made.append(series)
        return (*made, *sleep_series(sorted(self.spells)), *self.finished)


class PersonalReader(abc.ABC):
    """The people of exports of one person each (see `reader.Reader`)."""

    one_file_each = False  # see `person_of`

    def __init__(self, options: ReaderOptions) -> None:
        self._options = options

    @abc.abstractmethod
    def reads(self, file: SourceFile) -> str:
        """Why a file is not read; "" for one that is."""

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonFiles]:
        named = []
        for file in source_files(source, report, self._options.limits):
            if reason := self.reads(file):
                report.ignore(file.label, reason)
            else:
                named.append((self.person_of(file, source), file))
        yield from sort_files(named, self._options.people, report, one_file_each=self.one_file_each)

    def person_of(self, file: SourceFile, source: Path) -> str:
        return person_of(file, source, one_file_each=self.one_file_each)

    def person(self, key: PersonFiles) -> str:
        return key.person


class RecordingReader(PersonalReader):
    """A reader whose files are added to the `Recording` of their person, one after another."""

    title: str  # of the format, in messages
    expected: str  # what its files are, in the refusal of a source that has none

    @abc.abstractmethod
    def channels_of(self, file: SourceFile) -> Iterable[str]:
        """The channels that a file which is read can hold."""

    @abc.abstractmethod
    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        """Adds what a file holds. UnreadableFile sets it aside; what was added before stays."""

    def new_recording(self) -> Recording:
        return Recording()

    def channels(self, source: Path) -> tuple[str, ...]:
        files = source_files(source, IngestReport(), self._options.limits)
        channels = dict.fromkeys(name for file in files if not self.reads(file) for name in self.channels_of(file))
        if not channels:
            raise UserError(f"{source} holds no {self.title} file: expected {self.expected}.")
        return tuple(channels)

    def read(self, _: Path, key: PersonFiles, report: IngestReport) -> PersonRecord | None:
        recording = self.new_recording()
        for file in key.files:
            report.use(file.label, f"{self.title} file")
            with reading(file.label, report):
                self.add_file(file, recording, report)
        series = recording.series(report)
        if not series:
            report.people_without_data += 1
            return None
        clock = Clock(self._options.time_zone or "", changes_of_offset(recording.offsets))
        events = dict.fromkeys((*recording.events, *sleep_events(sorted(recording.spells))))
        return PersonRecord(
            key.person,
            series,
            tuple(sorted(events, key=lambda event: (event.start, event.end))),
            time_zone=clock.time_zone,
            offsets=clock.offsets,
            is_wall_clock=recording.is_wall_clock,
            day_labels=recording.day_labels(clock),
            identity=self._options.people.identity(key.person),
        )
