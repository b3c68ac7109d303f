"""Empatica E4 recordings: folders or zips of sessions, to minute features, events and labels.

A session is a folder (or a zip) that holds some of ACC, EDA, TEMP, HR, IBI and tags .csv. Whose it is follows
from the folders above (docs/ingest.md); the report says how they were read:

- folders that say when (a date, `session 2`, E4 Connect's `1684532969_A01B2C`: start and device) and levels of
  one name for all sessions tell nobody apart and are skipped;
- of `CLASS/PERSON` and `PERSON/CLASS` the level with numbers in its names is the people, else that with more
  names; the upper one where both are alike, or where most lower names stand in one folder only;
- a class ("STRESS") becomes an event of kind "session" and name "stress" where several people have it. A name
  of one person only, or with a number in it, may be an id and is never written.

The E4 writes UTC. `time_zone` says where it was worn; it moves the day windows, never the samples.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import MINUTELY_26, REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest import motion, signals
from lsm_jax.ingest.base import ReaderOptions
from lsm_jax.ingest.empatica_files import (
    Beats,
    Sampled,
    of_one_recording,
    read_beats,
    read_sampled,
    read_tags,
    without_repeat,
)
from lsm_jax.ingest.empatica_study import is_study_file, read_study
from lsm_jax.ingest.files import Refused, SourceFile, source_files
from lsm_jax.ingest.parse import checked_zone
from lsm_jax.ingest.record import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport

SAMPLED = ("ACC", "EDA", "TEMP", "HR")
FILES = {f"{name.lower()}.csv": name for name in (*SAMPLED, "IBI", "tags")}
_UNUSED = {
    "bvp.csv": "the raw pulse wave; heart beats are read from IBI.csv",
    "info.txt": "the maker's description of the files",
}
_OF_SENSOR = {"ACC": {"ACC"}, "EDA": {"EDA"}, "TEMP": {"TEMP"}, "HR": {"PPG"}, "IBI": {"PPG"}}
# Features the E4's signals do not carry, or not within a minute (docs/signals.md).
_NOT_MADE = {"heart_rate_at_rest", "altitude_sd"}
_CHANNELS = (*(name for name in MINUTELY_26 if name not in _NOT_MADE), "pnn20")
_CONNECT = re.compile(r"(?P<start>\d{9,11})_(?P<device>[0-9A-Za-z]+)")
_DATE = r"20[12]\d(?P<mark>[-_.]?)[01]\d(?P=mark)[0-3]\d(?:[-_. T].*)?"
_WHEN = re.compile(rf"{_CONNECT.pattern}|{_DATE}|(?:session|visit|day|night|week)[-_ ]?\d+", re.I)
_PIECE = re.compile(r"(?P<person>.+)_[a-z]")
_G = 1 / 64  # the file's unit of acceleration

Read = TypeVar("Read")


@dataclasses.dataclass(frozen=True)
class Session:
    """One recording.

    Attributes:
      place: its folder or zip, as reports call it.
      kind: its class in lower case, "" where the folders do not say.
      files: (sensor, file) pairs.
      trusted: the only sensors to use; None for all.
    """

    place: str
    kind: str
    files: tuple[tuple[str, SourceFile], ...]
    trusted: frozenset[str] | None = None


@dataclasses.dataclass(frozen=True)
class Wearer:
    """The key of one person: where the sessions are, and the labels the study gives."""

    person: str
    sessions: tuple[Session, ...]
    labels: tuple[tuple[str, float | str], ...]


class EmpaticaReader:
    """Reads E4 sessions; see the module's text for the layouts."""

    def __init__(self, options: ReaderOptions) -> None:
        self._limits = options.limits
        self._time_zone = checked_zone(options.time_zone or "UTC", "--time-zone")

    def channels(self, source: Path) -> tuple[str, ...]:
        """The minute features of the sensors found.

        Raises:
          UserError: no E4 session below `source`.
        """
        found = {FILES.get(file.name.lower(), "") for file in source_files(source, IngestReport(), self._limits)}
        sensors = {sensor for name in found - {"", "tags"} for sensor in _OF_SENSOR[name]}
        if not sensors:
            raise UserError(
                f"{source} holds no Empatica E4 session: none of ACC.csv, EDA.csv, TEMP.csv, HR.csv, IBI.csv in any "
                "folder or zip. Point --source at the folder of the sessions."
            )
        return tuple(name for name in _CHANNELS if REGISTRY[name].sensor in sensors)

    def people(self, source: Path, report: IngestReport) -> Iterator[Wearer]:
        folders: dict[PurePosixPath, dict[str, SourceFile]] = {}
        beside = []
        for file in source_files(source, report, self._limits):
            name = file.name.lower()
            if name in FILES:
                known = folders.setdefault(_folder(file), {}).setdefault(FILES[name], file)
                if known is not file:
                    report.set_aside(file.label, f"the same session as {known.label}")
            elif is_study_file(file):
                beside.append(file)
            else:
                report.ignore(file.label, _UNUSED.get(name, "no file of an E4 session"))
        study = read_study(beside, report, self._limits)
        wearers: dict[str, list[Session]] = {}
        for folder, (person, kind) in _whose(folders, source, study.labels, report).items():
            named = ((part.lower(), folder.name) for part in folder.parts)
            trusted = next((study.valid_only[name] for name in named if name in study.valid_only), None)
            session = Session(str(folder), kind, tuple(folders[folder].items()), trusted)
            wearers.setdefault(person, []).append(session)
        for person, sessions in sorted(wearers.items()):
            labels = tuple(sorted(study.labels.get(person, {}).items()))
            yield Wearer(person, tuple(sessions), labels)

    def read(self, source: Path, key: Wearer, report: IngestReport) -> PersonRecord | None:  # noqa: ARG002
        series: list[Series] = []
        events: list[RecordEvent] = []
        for session in key.sessions:
            new_series, new_events = self._session(session, report)
            series += new_series
            events += new_events
        if not series:
            report.note(f"{key.sessions[0].place}: no usable signal; the person is left out.")
            return None
        return PersonRecord(key.person, tuple(series), tuple(events), dict(key.labels), self._time_zone)

    def _session(self, session: Session, report: IngestReport) -> tuple[list[Series], list[RecordEvent]]:
        files = {
            name: file
            for name, file in session.files
            if session.trusted is None or name == "tags" or _OF_SENSOR[name] & session.trusted
        }
        sampled = {}
        for name in SAMPLED:
            signal = self._attempt(files.get(name), report, functools.partial(read_sampled, sensor=name))
            if signal is not None:
                sampled[name] = signal
        sampled = without_repeat(sampled, files, report)
        sampled = of_one_recording(sampled, files, report)
        beats = self._attempt(files.get("IBI"), report, read_beats)
        start, end = _span(sampled, beats)
        tags = self._attempt(files.get("tags"), report, read_tags) or []
        series = _sampled_series(sampled) + _heart_series(
            sampled.get("HR"), _placed(beats, start, end, files, report), start, end
        )
        if not series:
            return [], []
        return series, _events(session, tags, start, end)

    def _attempt(self, file: SourceFile | None, report: IngestReport, read: Callable[..., Read]) -> Read | None:
        """What `read` makes of the file; None, and said in the report, where the file cannot be used."""
        if file is None:
            return None
        try:
            return read(file, report=report, limits=self._limits)
        except Refused as refusal:
            report.set_aside(file.label, str(refusal))
            return None


# Where sessions are, and whose.


def _folder(file: SourceFile) -> PurePosixPath:
    """The session's folder; a zip that holds the files directly counts as one."""
    if not file.member:
        return PurePosixPath(file.path).parent
    return PurePosixPath(file.path).with_suffix("") / PurePosixPath(file.member).parent


def _whose(
    folders: Iterable[PurePosixPath], source: Path, known: Iterable[str], report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """(raw person id, session class or "") of each session's folder; `known` are ids the study's tables name."""
    told = {folder: tuple(part for part in folder.parts if not _WHEN.fullmatch(part)) for folder in folders}
    names = set(known).union(*told.values())
    found: dict[PurePosixPath, tuple[str, str]] = {}
    # By depth: one session that lies deeper than the others must not shift their levels.
    for depth in sorted({len(parts) for parts in told.values()}):
        rows = {
            folder: tuple(_joined(part, names) for part in parts)
            for folder, parts in told.items()
            if len(parts) == depth
        }
        if depth:
            people = {*known, *(person for person, _ in found.values())}
            found |= _read_levels(rows, people, report)
        else:
            found |= {folder: (_device(folder) or source.resolve().stem, "") for folder in rows}
            report.note(f"{len(rows)} sessions lie in no folder of a person: each device, or the source, is a person.")
    return found


def _read_levels(
    rows: Mapping[PurePosixPath, tuple[str, ...]], known: Set[str], report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """(person, class or "") of folders of one depth, from the names of their levels; `known` are people for certain."""
    levels = list(rows.values())
    person = _person_level(levels, known)
    classes = _class_levels(levels, person)
    people_of = collections.defaultdict[tuple[int, str], set[str]](set)
    for row in levels:
        for level in classes:
            people_of[level, row[level]].add(row[person])
    shape = "/".join("PERSON" if i == person else "CLASS" if i in classes else "*" for i in range(len(levels[0])))
    report.note(
        f"{len(levels)} sessions were read as {shape}, {len({row[person] for row in levels})} people (folders of dates "
        "and of one name, *, tell nobody apart). If these are not the people, see Empatica E4 in docs/ingest.md."
    )

    shared = {name for name, people in people_of.items() if len(people) > 1 and not _numbered([name[1]])}
    return {
        folder: (row[person], next((row[level].lower() for level in classes if (level, row[level]) in shared), ""))
        for folder, row in rows.items()
    }


def _joined(name: str, names: Container[str]) -> str:
    """The name without the `_a`, `_b` of a recording cut in pieces, where the whole name is known too."""
    piece = _PIECE.fullmatch(name)
    return piece["person"] if piece and piece["person"] in names else name


def _device(folder: PurePosixPath) -> str:
    """The serial number of the device, where E4 Connect named the folder."""
    connect = _CONNECT.fullmatch(folder.name)
    return connect["device"] if connect else ""


def _person_level(rows: Sequence[tuple[str, ...]], known: Set[str]) -> int:
    """The level of folders whose names are the people.

    Known people, where a level holds nobody else. Not the lowest, where most of its names stand in one folder only:
    those are sessions. Of the others that with numbers in its names (S01 in STRESS), else that with the most names,
    of several the uppermost.
    """
    names = [set(level) for level in zip(*rows, strict=True)]
    several = [level for level, found in enumerate(names) if len(found) > 1]
    if certain := [level for level in several or range(len(names)) if names[level] <= known]:
        return certain[0]
    if not several:
        return len(names) - 1
    lowest = several[-1]
    places = collections.Counter(name for _, name in {(row[:lowest], row[lowest]) for row in rows})
    if len(several) > 1 and 2 * sum(count > 1 for count in places.values()) < len(places):
        several.remove(lowest)
    several = [level for level in several if _numbered(names[level])] or several
    return max(several, key=lambda level: len(names[level]))


def _numbered(names: Iterable[str]) -> bool:
    return all(re.search(r"\d", name) for name in names)


def _class_levels(rows: Sequence[tuple[str, ...]], person: int) -> list[int]:
    """The other levels of several names, those below the person first, the nearest before the farther."""
    order = (*range(person + 1, len(rows[0])), *range(person - 1, -1, -1))
    return [level for level in order if len({row[level] for row in rows}) > 1]


# What was recorded when.


def _span(sampled: dict[str, Sampled], beats: Beats | None) -> tuple[float, float]:
    """First and last second of the session; (0, 0) for one without any time."""
    if sampled:
        return min(signal.start for signal in sampled.values()), max(signal.end for signal in sampled.values())
    if beats is not None and beats.start is not None:
        return beats.start, beats.start + float(beats.offset[-1])
    return 0.0, 0.0


def _placed(
    beats: Beats | None, start: float, end: float, files: dict[str, SourceFile], report: IngestReport
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]] | None:
    """(seconds since the epoch, interval) of the beats that fall into the session."""
    if beats is None:
        return None
    label, origin = files["IBI"].label, beats.start
    if end <= start:
        report.set_aside(label, "no start time, and no other file of its session has one")
        report.rows_kept -= len(beats.offset)
        return None
    if origin is None:
        report.note(f"{label}:1: no usable start time; beats are counted from the start of the session's other files.")
        origin = start
    if not start - 60 <= origin <= end:
        report.set_aside(label, "recorded at another time than the rest of its session")
        report.rows_kept -= len(beats.offset)
        return None
    inside = origin + beats.offset <= end
    report.quarantine("beat after the end of its session", label, beats.line[~inside].tolist())
    report.rows_kept -= int((~inside).sum())
    return origin + beats.offset[inside], beats.interval[inside]


def _events(session: Session, tags: list[int], start: float, end: float) -> list[RecordEvent]:
    events = [RecordEvent("session", "tag", int(tag // 60), int(tag // 60) + 1) for tag in tags]
    if session.kind:
        events.append(RecordEvent("session", session.kind, int(start // 60), int(-(-end // 60))))
    return events


# Signals to series.


def _sampled_series(sampled: dict[str, Sampled]) -> list[Series]:
    made: list[Series] = []
    if "ACC" in sampled:
        moved = sampled["ACC"]
        first, grid = signals.minute_grid(moved.samples * _G, moved.start, moved.rate)
        made += _series(first, motion.acceleration_features(grid, moved.rate))
    for name, features in (("EDA", signals.skin_conductance_features), ("TEMP", signals.skin_temperature_features)):
        if name in sampled:
            skin = sampled[name]
            first, grid = signals.minute_grid(skin.samples[:, 0], skin.start, skin.rate)
            made += _series(first, features(grid))
    return made


def _heart_series(
    rate: Sampled | None,
    beats: tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]] | None,
    start: float,
    end: float,
) -> list[Series]:
    """Heart rate as the device states it, and what the beats say; they fill the minutes the device left out."""
    if rate is None and beats is None:
        return []
    first, minutes = int(start // 60), int(-(-end // 60)) - int(start // 60)
    stated = np.full(minutes, np.nan)
    if rate is not None:
        here, grid = signals.minute_grid(rate.samples[:, 0], rate.start, rate.rate)
        level = signals.mean_level(grid, REGISTRY["heart_rate"].low, REGISTRY["heart_rate"].high)
        # Rounding to the grid may lay the last sample one place beyond the session's end.
        stated[here - first : here - first + len(level)] = level[: minutes - (here - first)]
    if beats is None:
        return _series(first, {"heart_rate": stated})
    features = signals.heart_beat_features(*beats, first, minutes)
    edges = np.clip(60.0 * (first + np.arange(minutes + 1)), start, end)
    recorded = (edges[1:] - edges[:-1]) / 60
    features["rr_percent_valid"] = np.where(recorded >= signals.ENOUGH, features["rr_percent_valid"], np.nan)
    features["heart_rate"] = np.where(np.isnan(stated), features["heart_rate"], stated)
    return _series(first, features)


def _series(first: int, features: signals.Features) -> list[Series]:
    """Series of the minutes with a value."""
    made = []
    for name, values in features.items():
        here = np.flatnonzero(~np.isnan(values))
        if len(here):
            made.append(Series(name, first + here.astype(np.int64), values[here].astype(np.float32)))
    return made
