"""The kinds of files of a Google Takeout of Fitbit and of Fitbit's web API, by their names and how they start."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

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
# Start of the name of a CSV -> its column of times. Files of other names have no minutes.
_CSV_NAMES = re.compile(
    r"(heart_rate|steps|distance|calories|floors|oxygen_saturation|heart_rate_variability)_\d{4}-\d\d-\d\d\.csv"
    r"|(Minute SpO2|Heart Rate Variability Details|Device Temperature) - .*\.csv"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is, as its name and its start tell."""

    name: str  # "heart_rate", "sleep", "exercise", "resting_heart_rate", "csv", "api" or "profile"
    columns: tuple[str, ...] = ()  # of a CSV
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
        return SLEEP_CHANNELS if self.name == "sleep" else ()


_JSON_NAME = re.compile(
    rf"({'|'.join([*JSON_SAMPLES, 'sleep', 'exercise', 'resting_heart_rate'])})(-[\d-]+)?\.json", re.I
)
_JSON_START = re.compile(rb'^(\xef\xbb\xbf)?\s*\[\s*(\{\s*"(dateTime|logId)"|\])')
_API_KEYS = re.compile(rb'"activities-(heart|steps|calories|distance|floors)(-intraday)?"|"sleep"\s*:\s*\[')
_UTC = re.compile(rb"\d\d/\d\d/\d\d|\d:\d\d(\.\d+)?Z")


def kind_of(file: SourceFile) -> Kind | None:
    """The kind of a file; None for one that holds nothing to read."""
    if file.name.lower().endswith(".json"):
        start = first_bytes(file)
        writes_utc = bool(_UTC.search(start))
        if (match := _JSON_NAME.fullmatch(file.name)) and _JSON_START.match(start):
            return Kind(match[1].lower(), writes_utc=writes_utc)
        return Kind("api", writes_utc=writes_utc) if _API_KEYS.search(start) else None
    if not _CSV_NAMES.fullmatch(file.name) and file.name != PROFILE:
        return None
    columns = header_names(file)
    if file.name == PROFILE:
        return Kind("profile", columns) if {"date_of_birth", "timezone"} <= {*columns} else None
    if not {*columns} & CSV_COLUMNS.keys():
        return None
    return Kind("csv", columns, bool(_UTC.search(first_bytes(file))))
