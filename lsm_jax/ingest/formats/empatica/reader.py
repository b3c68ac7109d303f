"""Reads Empatica E4 recordings: folders or zips of sessions, to minute features, events and labels.

A session is a folder (or a zip) that holds some of ACC, EDA, TEMP, HR, IBI and tags .csv. `people`
finds its person. The E4 writes UTC; `time_zone` is that of the wearer, which moves the day windows, never the samples.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import MINUTELY_26, REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest.files.faults import LOST_ROWS, reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.opening import first_bytes
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.formats.empatica.files import (
    Beats,
    SampledSignal,
    drop_repeated_half,
    keep_one_recording,
    read_beats,
    read_signal,
    read_tags,
)
from lsm_jax.ingest.formats.empatica.people import (
    assign_sessions,
    assign_sessions_by_rule,
    is_study_table,
    read_study_tables,
)
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.people.roster import Roster
from lsm_jax.ingest.reader import Evidence, PersonRecord, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.signals.grid import MIN_SHARE, Features, mean_level, minute_grid
from lsm_jax.ingest.signals.heart import heart_beat_features
from lsm_jax.ingest.signals.motion import acceleration_features
from lsm_jax.ingest.signals.skin import skin_conductance_features, skin_temperature_features

FILES = {f"{name.lower()}.csv": name for name in ("ACC", "EDA", "TEMP", "HR", "IBI", "tags")}
_UNUSED_FILES = {
    "bvp.csv": "the raw pulse wave; heart beats are read from IBI.csv",
    "info.txt": "the maker's description of the files",
}
_SENSOR = {"ACC": "ACC", "EDA": "EDA", "TEMP": "TEMP", "HR": "PPG", "IBI": "PPG"}
# Features that the E4's signals do not carry, or not within a minute (docs/reference/signals.md).
_NOT_MEASURED = {"heart_rate_at_rest", "altitude_sd"}
_CHANNELS = (*(name for name in MINUTELY_26 if name not in _NOT_MEASURED), "pnn20")
_G_PER_UNIT = 1 / 64  # the file's unit of acceleration


@dataclasses.dataclass(frozen=True)
class Session:
    """One recording."""

    folder: str  # its folder or zip, as in reports
    kind: str  # its class in lower case, "" if the folders name none
    files: dict[str, SourceFile]  # by sensor, without those that the study calls not valid


@dataclasses.dataclass(frozen=True)
class PersonSessions:
    """The key of one person: the sessions, and the labels from the study's tables."""

    person: str
    sessions: tuple[Session, ...]
    labels: dict[str, float | str]


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Signals that start with the Unix time of their session."""
    named = [file for file in files if FILES.get(file.name.lower()) in _SENSOR]
    found = tuple(file for file in named if re.match(rb"\d{9,10}(\.\d+)?[,\r\n]", first_bytes(file, 32)))
    return Evidence("Empatica E4 sessions", found) if found else None


class EmpaticaReader:
    """Reader of E4 sessions (see `reader.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        self._limits = options.limits
        self._people_rule = options.people
        self._time_zone = options.time_zone or ""

    def channels(self, source: Path) -> tuple[str, ...]:
        """The minute features of the sensors found.

        Raises:
          UserError: no E4 session below `source`.
        """
        names = {FILES.get(file.name.lower()) for file in source_files(source, IngestReport(), self._limits)}
        sensors = {sensor for name, sensor in _SENSOR.items() if name in names}
        if not sensors:
            raise UserError(
                f"{source} holds no Empatica E4 session: none of ACC.csv, EDA.csv, TEMP.csv, HR.csv, IBI.csv in any "
                "folder or zip. Point --source at the folder of the sessions."
            )
        return tuple(name for name in _CHANNELS if REGISTRY[name].sensor in sensors)

    def people(self, source: Path, report: IngestReport) -> Iterator[PersonSessions]:
        folders: dict[PurePosixPath, dict[str, SourceFile]] = {}
        study_tables = []
        for file in source_files(source, report, self._limits):
            name = file.name.lower()
            if name in FILES:
                first = folders.setdefault(_folder(file), {}).setdefault(FILES[name], file)
                if first is not file:
                    report.set_aside(file.label, f"the same session as {first.label}")
            elif is_study_table(file):
                study_tables.append(file)
            else:
                report.ignore(file.label, _UNUSED_FILES.get(name, "no file of an E4 session"))
        labels, valid_sensors = read_study_tables(study_tables, report)
        sessions: dict[str, list[Session]] = {}
        rule = self._people_rule
        if rule.is_of_files:
            a_file = {folder: next(iter(files.values())).label for folder, files in folders.items()}
            assigned = assign_sessions_by_rule(a_file, rule, report)
        else:
            assigned = assign_sessions(folders, source, {*labels}, report)
        for folder, (person, kind) in assigned.items():
            keys = ((part.lower(), folder.name) for part in folder.parts)
            valid = next((valid_sensors[key] for key in keys if key in valid_sensors), {*_SENSOR.values()})
            own = folders[folder]
            files = {name: own[name] for name in FILES.values() if name in own and _SENSOR.get(name) in {*valid, None}}
            sessions.setdefault(person, []).append(Session(str(folder), kind, files))
        roster = Roster(rule)
        for person, own_sessions in sessions.items():
            for session in own_sessions:
                roster.add([person], f"recordings[{PurePosixPath(session.folder).parent}]", session.folder)
        roster.add(labels, "labels", "the study's tables")
        for person, spellings in roster.people(report).items():
            found = {name: label for each in spellings for name, label in sorted(labels.get(each, {}).items())}
            if own_sessions := [session for each in spellings for session in sessions.get(each, ())]:
                yield PersonSessions(person, tuple(own_sessions), found)

    def person(self, key: PersonSessions) -> str:
        return key.person

    def read(self, source: Path, key: PersonSessions, report: IngestReport) -> PersonRecord | None:  # noqa: ARG002
        series: list[Series] = []
        events: list[RecordEvent] = []
        offsets: dict[int, int] = {}
        for session in key.sessions:
            with reading(session.folder, report, whole=True):
                new_series, new_events, new_offsets = self._read_session(session, report)
                offsets |= new_offsets
                series += new_series
                events += new_events
        if not series:
            report.note(f"{key.sessions[0].folder}: no session of the person is usable; the person is left out.")
            return None
        return PersonRecord(
            key.person,
            tuple(series),
            tuple(events),
            key.labels,
            time_zone=self._time_zone,
            offsets=tuple(sorted(offsets.items())),
            identity=self._people_rule.identity(key.person),
        )

    def _read_session(
        self, session: Session, report: IngestReport
    ) -> tuple[list[Series], list[RecordEvent], dict[int, int]]:
        """Series, events, and the offset from UTC that the session's start is written with, by its minute."""
        recorded: dict[str, SampledSignal] = {}
        beats, tags = None, list[int]()
        for name, file in session.files.items():
            report.use(file.label, f"{name} of a session")
            with reading(file.label, report):
                if name == "IBI":
                    beats = read_beats(file, report)
                elif name == "tags":
                    tags = read_tags(file, report)
                else:
                    recorded[name] = read_signal(file, name, report)
        recorded = keep_one_recording(drop_repeated_half(recorded, report), report)
        start, end = _span(recorded, beats)
        beat_times = _place_beats(beats, start, end, report) if beats else None
        series = _signal_series(recorded, report) + _heart_series(recorded.get("HR"), beat_times, start, end, report)
        if not series:
            raise UnreadableFile("no usable signal")
        events = [RecordEvent("session", "tag", tag // 60, tag // 60 + 1) for tag in tags]
        if session.kind:
            events.append(RecordEvent("session", session.kind, int(start // 60), int(-(-end // 60))))
        offsets = {int(start // 60): each.utc_offset for each in recorded.values() if each.utc_offset is not None}
        return series, events, offsets


def _folder(file: SourceFile) -> PurePosixPath:
    """The session's folder; a zip that holds the files directly counts as one."""
    if not file.member:
        return PurePosixPath(file.path).parent
    return PurePosixPath(file.path).with_suffix("") / PurePosixPath(file.member).parent


# Times.


def _span(recorded: dict[str, SampledSignal], beats: Beats | None) -> tuple[float, float]:
    """First and last second of the session; (0, 0) for one without any time."""
    if recorded:
        return min(signal.start for signal in recorded.values()), max(signal.end for signal in recorded.values())
    if beats is not None and beats.start is not None:
        return beats.start, beats.start + float(beats.offset[-1])
    return 0.0, 0.0


BeatTimes = tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]


def _place_beats(beats: Beats, start: float, end: float, report: IngestReport) -> BeatTimes | None:
    """(seconds since the epoch, interval) of the beats that fall into the session."""
    origin, fault = beats.start, ""
    if end <= start:
        fault = "no start time, and no other file of its session has one"
    elif origin is None:
        report.note(
            f"{beats.file}:1: no usable start time; beats are counted from the start of the session's other files."
        )
        origin = start
    elif not start - 60 <= origin <= end:
        fault = "recorded at another time than the rest of its session"
    if fault or origin is None:
        report.set_aside(beats.file, fault)
        report.unkeep(LOST_ROWS, beats.file, rows=len(beats.offset))
        return None
    inside = origin + beats.offset <= end
    report.unkeep("beat after the end of its session", beats.file, beats.line[~inside].tolist())
    return origin + beats.offset[inside], beats.interval[inside]


# Signals to minute values.


def _signal_series(recorded: dict[str, SampledSignal], report: IngestReport) -> list[Series]:
    series: list[Series] = []
    if "ACC" in recorded:
        signal = recorded["ACC"]
        first, grid = minute_grid(signal.samples * _G_PER_UNIT, signal.start, signal.rate)
        series += _to_series(first, acceleration_features(grid, signal.rate), report)
    for name, features in (("EDA", skin_conductance_features), ("TEMP", skin_temperature_features)):
        if name in recorded:
            signal = recorded[name]
            first, grid = minute_grid(signal.samples[:, 0], signal.start, signal.rate)
            series += _to_series(first, features(grid), report)
    return series


def _heart_series(
    rate: SampledSignal | None, beats: BeatTimes | None, start: float, end: float, report: IngestReport
) -> list[Series]:
    """Heart rate from the device's own file, else from the beats, and the variability of the beats."""
    if rate is None and beats is None:
        return []
    first, minutes = int(start // 60), int(-(-end // 60)) - int(start // 60)
    heart_rate = np.full(minutes, np.nan)
    if rate is not None:
        rate_first, grid = minute_grid(rate.samples[:, 0], rate.start, rate.rate)
        level = mean_level(grid, REGISTRY["heart_rate"].low, REGISTRY["heart_rate"].high)
        # Rounding to the grid may put the last sample one position after the session's end.
        begin = rate_first - first
        heart_rate[begin : begin + len(level)] = level[: minutes - begin]
    if beats is None:
        return _to_series(first, {"heart_rate": heart_rate}, report)
    features = heart_beat_features(*beats, first, minutes)
    edges = np.clip(60.0 * (first + np.arange(minutes + 1)), start, end)
    recorded_share = (edges[1:] - edges[:-1]) / 60
    is_recorded = recorded_share >= MIN_SHARE
    features["rr_percent_valid"] = np.where(is_recorded, features["rr_percent_valid"], np.nan)
    features["heart_rate"] = np.where(np.isnan(heart_rate), features["heart_rate"], heart_rate)
    return _to_series(first, features, report)


def _to_series(first: int, features: Features, report: IngestReport) -> list[Series]:
    """Series of the minutes with a value; `first` is the minute of the first row."""
    series = []
    for name, values in features.items():
        rows = np.flatnonzero(~np.isnan(values))
        if len(rows):
            series.append(minute_series(name, 60 * (first + rows.astype(np.int64)), values[rows], report))
    return series
