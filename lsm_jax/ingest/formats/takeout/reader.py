"""Reads Fitbit data of one person each: Google Takeout (JSON and CSV), and the JSON of Fitbit's web API in archives.

- A time such as 01/31/23 08:00:05 is in UTC, as is one with a Z; one in ISO 8601 without it is on the wearer's clock,
  whose zone is that of Profile.csv or `--time-zone`. The web API writes the wearer's clock.
- Takeout holds most signals twice: of the minutes of both, those of the CSV files are taken; so are exercises, sleep
  and labels of days.
- Of a person nothing is kept but age and sex.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lsm_jax.channels import REGISTRY
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.formats.takeout.files import read_file
from lsm_jax.ingest.formats.takeout.kinds import Kind, kind_of, why_ignored
from lsm_jax.ingest.formats.takeout.recording import TakeoutRecording
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.reader import Evidence, ReaderOptions
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import ZONES

_PROFILE_COLUMNS = ("date_of_birth", "gender", "timezone")
_TAKEOUT_PART = re.compile(
    r"takeout-\d{8}T\d{6}Z(-\d+)*-\d+|Takeout|Fitbit|Google Health|Global Export Data|.*_GoogleData|Your Profile"
    r"|Heart Rate Variability|Oxygen Saturation \(SpO2\)|Temperature|Physical Activity|Sleep"
    r"|Sleep Score|Stress Score|Heart|Biometrics|Active Zone Minutes \(AZM\)"
)


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Files whose name and start are those of Takeout or of the web API."""
    found = tuple(file for file in files if (kind := kind_of(file)) and not kind.is_profile)
    return Evidence("Fitbit data of Google Takeout or Fitbit's web API", found) if found else None


class TakeoutReader(RecordingReader):
    """Reader of Fitbit data (see `reader.Reader`)."""

    content = "Fitbit data of Google Takeout"
    expected = (
        "files such as heart_rate-2023-01-01.json, sleep-2023-01-01.json or steps_2023-01-01.csv, plain or in the zips "
        "of Takeout"
    )

    def __init__(self, options: ReaderOptions) -> None:
        super().__init__(options)
        self._kinds: dict[SourceFile, Kind | None] = {}  # finding a kind takes opening the file

    def _kind(self, file: SourceFile) -> Kind | None:
        if file not in self._kinds:
            self._kinds[file] = kind_of(file)
        return self._kinds[file]

    def reads(self, file: SourceFile) -> str:
        return "" if self._kind(file) else why_ignored(file)

    def channels(self, source: Path) -> tuple[str, ...]:
        found = super().channels(source)
        return tuple(name for name in REGISTRY if name in found)

    def channels_of(self, file: SourceFile) -> tuple[str, ...]:
        kind = self._kind(file)
        return kind.channels(file) if kind else ()

    def person_of(self, file: SourceFile, source: Path) -> str:
        """The folders and the zips of one Takeout are all of the person of the source."""
        name = super().person_of(file, source)
        return (source if source.is_dir() else source.parent).resolve().name if _TAKEOUT_PART.fullmatch(name) else name

    def new_recording(self) -> Recording:
        return TakeoutRecording(self._options.prefer)

    def content_of(self, file: SourceFile) -> str:
        kind = self._kind(file)
        return "the profile" if kind and kind.is_profile else "Fitbit records"

    def add_files(self, files: Sequence[SourceFile], recording: Recording, report: IngestReport) -> None:
        """The profile comes first, since it names the zone of the wearer's clock."""
        kinds = [(file, kind) for file in files if (kind := self._kind(file))]
        profile = _profile([file for file, kind in kinds if kind.is_profile], recording, report)
        recording.born, recording.sex = profile.get("date_of_birth", ""), profile.get("gender", "")
        zone = self._options.time_zone or profile.get("timezone", "")
        recording.time_zone = zone if zone in ZONES else ""
        # Wall-clock times alone are days of their own; beside times in UTC they cannot be placed without a zone.
        recording.is_wall_clock = not recording.time_zone and not any(kind.writes_utc for _, kind in kinds)
        first = sorted(kinds, key=lambda each: each[1].name not in ("sleeps", "sleep_stages"))  # they tell offsets
        super().add_files([file for file, _ in first], recording, report)

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        assert isinstance(recording, TakeoutRecording)
        kind = self._kind(file)
        if kind and not kind.is_profile:
            read_file(file, kind, recording, report)


def _profile(files: Sequence[SourceFile], recording: Recording, report: IngestReport) -> dict[str, str]:
    """Birth date, gender and zone of the first Profile.csv with a row; no other row or column is read."""
    found: dict[str, str] = {}
    for file in files:
        if found:
            report.set_aside(file.label, "a further profile, the first one is used")
            continue
        with reading(file.label, report):
            for block in read_rows(file, _PROFILE_COLUMNS, report):
                used = 0 if found else len(block[:1])
                report.rows_kept += used
                recording.rows_kept[file.label] += used
                report.rows_ignored += len(block) - used
                for row in block[:used].iter_rows(named=True):
                    found = {name: row[name] or "" for name in _PROFILE_COLUMNS if name in row}
    return found
