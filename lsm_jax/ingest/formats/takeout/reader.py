"""Reads Fitbit data of one person each: Google Takeout (JSON and CSV), and the JSON of Fitbit's web API in archives.

- A time such as 01/31/23 08:00:05 is in UTC, as is one with a Z; one in ISO 8601 without it is on the wearer's clock,
  whose zone is that of Profile.csv or `--time-zone`. The web API writes the wearer's clock.
- Takeout holds most signals twice: of the minutes of both, those of the CSV files are taken.
- Of a person nothing is kept but age and sex.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.personal import PersonalReader
from lsm_jax.ingest.formats.takeout.files import TakeoutRecords, read_file
from lsm_jax.ingest.formats.takeout.kinds import kind_of, writes_utc
from lsm_jax.ingest.minutes.ranked import RankedSeries, best_of
from lsm_jax.ingest.minutes.recording import labels_about
from lsm_jax.ingest.minutes.sleep import best_spells, sleep_events, sleep_series
from lsm_jax.ingest.people.exports import PersonFiles
from lsm_jax.ingest.reader import Evidence, PersonRecord, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import ZONES

_PROFILE_COLUMNS = ("date_of_birth", "gender", "timezone")
_TAKEOUT_PART = re.compile(
    r"takeout-\d{8}T\d{6}Z(-\d+)*-\d+|Takeout|Fitbit|Google Health|Global Export Data|.*_GoogleData|Your Profile"
    r"|Heart Rate Variability|Oxygen Saturation \(SpO2\)|Temperature|Physical Activity|Sleep"
)


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Files whose name and start are those of Takeout or of the web API."""
    found = tuple(file for file in files if (kind := kind_of(file)) and not kind.is_profile)
    return Evidence("Fitbit data of Google Takeout or Fitbit's web API", found) if found else None


class TakeoutReader(PersonalReader):
    """Reader of Fitbit data (see `reader.Reader`)."""

    def reads(self, file: SourceFile) -> str:
        return "" if kind_of(file) else "no minutes, sleep, exercise or profile of Fitbit"

    def channels(self, source: Path) -> tuple[str, ...]:
        files = source_files(source, IngestReport(), self._options.limits)
        present = {channel for file in files if (kind := kind_of(file)) for channel in kind.channels(file)}
        if not present:
            raise UserError(
                f"{source} holds no Fitbit data of Google Takeout: expected files such as heart_rate-2023-01-01.json, "
                "sleep-2023-01-01.json or steps_2023-01-01.csv, plain or in the zips of Takeout."
            )
        return tuple(name for name in REGISTRY if name in present)

    def person_of(self, file: SourceFile, source: Path) -> str:
        """The folders and the zips of one Takeout are all of the person of the source."""
        name = super().person_of(file, source)
        return (source if source.is_dir() else source.parent).resolve().name if _TAKEOUT_PART.fullmatch(name) else name

    def read(self, _: Path, key: PersonFiles, report: IngestReport) -> PersonRecord | None:
        kinds = [(file, kind) for file in key.files if (kind := kind_of(file))]
        profile = _profile([file for file, kind in kinds if kind.is_profile], report)
        zone = self._options.time_zone or profile.get("timezone", "")
        zone = zone if zone in ZONES else ""
        # Wall-clock times alone are days of their own; beside times in UTC they cannot be placed without a zone.
        is_wall_clock = not zone and not any(writes_utc(file) for file, kind in kinds if not kind.is_profile)
        found = TakeoutRecords(zone, is_wall_clock)
        for file, kind in kinds:
            report.use(file.label, "the profile" if kind.is_profile else "Fitbit records")
            if not kind.is_profile:
                with reading(file.label, report):
                    read_file(file, kind, found, report)
        spells = best_spells(found.spells)
        series = [*_best(found.series, report), *sleep_series(spells)]
        if not any(len(each.minute) for each in series):
            report.people_without_data += 1
            return None
        return PersonRecord(
            key.person,
            tuple(series),
            (*sleep_events(spells), *found.activities),
            labels_about(profile.get("date_of_birth", ""), profile.get("gender", ""), series),
            time_zone=zone,
            is_wall_clock=is_wall_clock,
            day_labels=tuple(found.day_labels),
            identity=self._options.people.identity(key.person),
        )


def _best(series: dict[tuple[str, int, str], list[Series]], report: IngestReport) -> Iterator[Series]:
    """One series of each channel: in each minute that of the best kind of file."""
    channels: dict[str, list[RankedSeries]] = defaultdict(list)
    for (channel, rank, name), parts in series.items():
        channels[channel] += [RankedSeries(name, rank, part) for part in parts]
    for ranked in channels.values():
        yield best_of(ranked, report)


def _profile(files: Sequence[SourceFile], report: IngestReport) -> dict[str, str]:
    """Birth date, gender and zone of Profile.csv; no other column is read."""
    for file in files:
        with reading(file.label, report):
            for block in read_rows(file, _PROFILE_COLUMNS, report):
                report.rows_kept += len(block)
                for row in block.iter_rows(named=True):
                    return {name: row[name] or "" for name in _PROFILE_COLUMNS if name in row}
    return {}
