"""The kinds of files of a Google Takeout of Fitbit and of Fitbit's web API, by their names and how they start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from lsm_jax.ingest.files.opening import first_bytes
from lsm_jax.ingest.files.source import MIB, SourceFile
from lsm_jax.ingest.minutes.sleep import SLEEP_CHANNELS
from lsm_jax.ingest.tables.header import header_names

MAX_JSON_BYTES = 256 * MIB
PROFILE = "Profile.csv"
# Start of the name of a Takeout JSON -> (channel, scale to the registry's unit).
JSON_SAMPLES: Mapping[str, tuple[str, float]] = {
    "heart_rate": ("heart_rate", 1),
    "steps": ("steps", 1),
    "calories": ("calories", 1),
    "distance": ("distance", 0.01),  # cm
    "altitude": ("floors", 0.1),  # feet; a floor has ten
}
# Part of a key of a web API document -> (channel, scale).
API_SAMPLES: Mapping[str, tuple[str, float]] = {
    "heart": ("heart_rate", 1),
    "steps": ("steps", 1),
    "calories": ("calories", 1),
    "distance": ("distance", 1000),  # km
    "floors": ("floors", 1),
}
# Column of a CSV -> (channel, scale, minutes of a value).
CSV_COLUMNS: Mapping[str, tuple[str, float, float | None]] = {
    "beats per minute": ("heart_rate", 1, None),
    "steps": ("steps", 1, None),
    "distance": ("distance", 1, None),
    "calories": ("calories", 1, None),
    "floors": ("floors", 1, None),
    "oxygen saturation percentage": ("spo2", 1, None),
    "rmssd": ("rmssd", 1, 5),
    "low_frequency": ("hrv_lf", 1, 5),
    "high_frequency": ("hrv_hf", 1, 5),
    "root mean square of successive differences milliseconds": ("rmssd", 1, 5),
    "standard deviation milliseconds": ("sdnn", 1, 5),
    "temperature": ("skin_temperature", 1, None),
    "value": ("spo2", 1, None),  # of "Minute SpO2"
}
# The tables of minutes. The first column holds the times.
_CSV_NAMES = re.compile(
    r"(heart_rate|steps|distance|calories|floors|oxygen_saturation|heart_rate_variability)_\d{4}-\d\d-\d\d\.csv"
    r"|(Minute SpO2|Heart Rate Variability Details|Device Temperature) - .*\.csv"
)
SLEEP_TIMES = ("sleep_start", "sleep_end")
STAGE_TIMES = ("sleep_stage_start", "sleep_stage_end")
EXERCISE_COLUMNS = ("exercise_start", "exercise_end", "activity_name")
# Kind and start of the name of a table -> the columns that it needs.
_TABLES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("sleep_stages", "UserSleepStages"): ("sleep_stage_type", *STAGE_TIMES),
    ("sleeps", "UserSleeps"): SLEEP_TIMES,
    ("exercises", "UserExercises"): EXERCISE_COLUMNS,
}


class Daily(NamedTuple):
    """A table with a value for each day or night."""

    column: str
    label: str
    is_instant: bool = False  # the time of waking up; otherwise a date, often written as midnight UTC


# By the start of the file's name.
_DAILY: Mapping[str, Daily] = {
    "daily_resting_heart_rate": Daily("beats per minute", "resting_heart_rate"),
    "daily_heart_rate_variability": Daily("average heart rate variability milliseconds", "hrv_night_average"),
    "Daily Heart Rate Variability Summary": Daily("rmssd", "hrv_night_average"),
    "sleep_score": Daily("overall_score", "sleep_score", is_instant=True),
}
# What files hold that are not read: pattern of their names' start -> words.
_SUMMARIES = (
    "Daily |daily_|Respiratory Rate Summary|respiratory_rate_sleep_summary|Computed Temperature|UserSleepScores",
    r"Stress Score|sedentary_minutes|\w+_active_minutes|\w*vo2_max|time_in_heart_rate_zone|activity_level",
)
_IGNORED: Mapping[str, str] = {
    "|".join(_SUMMARIES): "summaries of days or nights",
    "Heart Rate Variability Histogram": "histograms of a night's heart rate variability",
    "estimated_oxygen_variation": "oxygen variation, a ratio that is not calibrated",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is, as its name and its start tell."""

    name: str  # of JSON "heart_rate", "sleep", "exercise", ..., "api"; else "csv", "daily", or one of `_TABLES`
    columns: tuple[str, ...] = ()  # of a table of minutes
    daily: Daily | None = None
    writes_utc: bool = False  # the first times are spelled as those in UTC are

    @property
    def is_profile(self) -> bool:
        return self.name == "profile"

    def channels(self, file: SourceFile) -> tuple[str, ...]:
        """The channels that the file can hold."""
        if self.name in JSON_SAMPLES:
            return (JSON_SAMPLES[self.name][0],)
        if self.name == "csv":
            return tuple(CSV_COLUMNS[name][0] for name in self.columns if name in CSV_COLUMNS)
        if self.name == "api":
            content = first_bytes(file, MAX_JSON_BYTES)
            names = set(re.findall(rb'"activities-([a-z]+)-intraday"', content))
            found = tuple(channel for name, (channel, _) in API_SAMPLES.items() if name.encode() in names)
            return found + (SLEEP_CHANNELS if b'"sleep"' in content else ())
        return SLEEP_CHANNELS if self.name in ("sleep", "sleep_stages") else ()


_JSON_NAME = re.compile(
    rf"({'|'.join([*JSON_SAMPLES, 'sleep', 'exercise', 'resting_heart_rate'])})(-[\d-]+)?\.json", re.I
)
_JSON_START = re.compile(rb'^(\xef\xbb\xbf)?\s*\[\s*(\{\s*"(dateTime|logId)"|\])')
_API_KEYS = re.compile(rb'"activities-(heart|steps|calories|distance|floors)(-intraday)?"|"sleep"\s*:\s*\[')
_UTC = re.compile(rb"\d\d/\d\d/\d\d|\d:\d\d(\.\d+)?(Z|[+-]\d\d)")


def kind_of(file: SourceFile) -> Kind | None:
    """The kind of a file; None for one that holds nothing to read."""
    if file.name.lower().endswith(".json"):
        start = first_bytes(file)
        writes_utc = bool(_UTC.search(start))
        if (match := _JSON_NAME.fullmatch(file.name)) and _JSON_START.match(start):
            return Kind(match[1].lower(), writes_utc=writes_utc)
        return Kind("api", writes_utc=writes_utc) if _API_KEYS.search(start) else None
    if file.name == PROFILE:
        return Kind("profile") if {"date_of_birth", "timezone"} <= {*header_names(file)} else None
    return _table_kind(file) if file.name.lower().endswith(".csv") else None


def _table_kind(file: SourceFile) -> Kind | None:
    """The kind of a CSV; its header is read only where its name is one of Fitbit's."""
    stem = re.sub(r"([ _-]+[\d()-]+)?\.csv$", "", file.name, flags=re.IGNORECASE)
    for (name, start), needed in _TABLES.items():
        if stem == start and {*needed} <= {*header_names(file)}:
            return Kind(name, writes_utc=True)
    if daily := _DAILY.get(stem):
        return Kind("daily", daily=daily) if {"timestamp", daily.column} <= {*header_names(file)} else None
    if not _CSV_NAMES.fullmatch(file.name):
        return None
    columns = header_names(file)
    if not {*columns} & CSV_COLUMNS.keys():
        return None
    return Kind("csv", columns, writes_utc=bool(_UTC.search(first_bytes(file))))


def why_ignored(file: SourceFile) -> str:
    """What a file that has no kind holds, where its name tells."""
    reason = next((reason for names, reason in _IGNORED.items() if re.match(names, file.name)), "")
    return reason or "no minutes, sleep, exercise or profile of Fitbit"
