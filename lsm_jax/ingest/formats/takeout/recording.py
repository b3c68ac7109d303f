"""What one person's files hold: times of several spellings, sources of one signal, sleep that is told twice."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from lsm_jax.ingest.cells import add_reason
from lsm_jax.ingest.files.faults import UnusableEntry
from lsm_jax.ingest.minutes.ranked import SLEEP_TOLD_AGAIN, RankedSeries
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.sleep import Spell
from lsm_jax.ingest.reader import RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import FLOATING, Clock, changes_of_offset, zone_name
from lsm_jax.ingest.times.text import ISO_FORMATS, Times, read_times

NO_ZONE = "time of the wearer's clock, of which no zone is known: give --time-zone"
# Sources of which no device or app is named. JSON files rank below the tables that they repeat.
JSON_FILES, CSV_FILES, WEB_API = "Takeout's JSON files", "Takeout's CSV files", "Fitbit's web API"
JSON_RANK = 1
SOURCE = "data source"  # the column of a table that names what wrote a row
_MAX_SOURCES = 50  # in a file; more are no devices
DAY = 86400
TOO_LONG = "lasts longer than a day"
_UTC_FORMATS = ("%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S")
_LOCAL_FORMATS = (*ISO_FORMATS, "%Y-%m-%d")
_MAX_OVERLAP = 60  # s; sleeps that overlap more are one sleep, told twice


class Sleep(NamedTuple):
    """One sleep as one source tells it, in seconds since the epoch, UTC."""

    rank: int  # of the source; 0 is the best
    start: float  # of the first stage, or of falling asleep
    end: float  # of the last stage, or of waking up
    file: str  # in the report
    spells: tuple[Spell, ...] = ()  # none where the source tells no stages
    rows: int = 1  # that tell it


class TakeoutRecording(Recording):
    """The files of one person. Times of a wall clock without a zone are read where all times are.

    Args:
      prefer: parts of names of sources that come before all others, the best first.
    """

    def __init__(self, prefer: Sequence[str] = ()) -> None:
        super().__init__()
        self._prefer = [name.casefold() for name in prefer]
        self.sleeps: list[Sleep] = []

    def instants(self, cells: pl.Series) -> tuple[pl.Series, pl.Series]:
        """(seconds since the epoch, reasons where there are none). The spelling tells UTC from the wearer's clock."""
        is_utc = cells.str.contains("/", literal=True).fill_null(False)
        if is_utc.all():
            utc = read_times(cells, _UTC_FORMATS, "UTC")
            return utc.second, utc.reason
        local = read_times(cells, _LOCAL_FORMATS, self.time_zone)
        second, reasons = local.second, local.reason
        floating = (local.clock == FLOATING).fill_null(False)
        if self.offsets and floating.any():
            clock = Clock(offsets=changes_of_offset(self.offsets))
            placed = pl.Series(clock.utc_seconds(second.fill_null(0).to_numpy()))
            second = second.zip_with(~floating | second.is_null(), placed)
        elif not self.is_wall_clock:
            reasons = add_reason(reasons, floating, NO_ZONE)
        if not is_utc.any():
            return second, reasons
        utc = read_times(cells, _UTC_FORMATS, "UTC")
        return utc.second.zip_with(is_utc, second), utc.reason.zip_with(is_utc, reasons)

    def instant(self, text: object) -> float:
        """Seconds since the epoch; UnusableEntry with the reason where there are none."""
        second, reason = self.instants(pl.Series([text if isinstance(text, str) else None], dtype=pl.String))
        if reason[0] is not None:
            raise UnusableEntry(reason[0])
        return float(second[0])

    def add_offsets(self, second: pl.Series, cells: pl.Series) -> None:
        """Notes what a column of offsets, such as -08:00, says of the clock at these times."""
        names = {cell: zone_name(cell) for cell in cells.unique().drop_nulls()}
        clock = cells.replace_strict(names, default=None, return_dtype=pl.String)
        nothing = pl.repeat(None, len(second), dtype=pl.String, eager=True)
        told = pl.DataFrame({"second": second, "reason": nothing, "clock": clock}).sort("second")
        self.add_clocks(Times(*told.get_columns()))

    def rank(self, source: str) -> int:
        """The rank of what wrote values; 0 is the best. Devices come before the JSON files, phones after."""
        if source == JSON_FILES:
            return JSON_RANK
        name = source.casefold()
        if (place := next((place for place, part in enumerate(self._prefer) if part in name), None)) is not None:
            return place - len(self._prefer)
        return {"a copy of another app": JSON_RANK + 2, "a phone": JSON_RANK + 1}.get(_kind(source), 0)

    def add_minutes(self, source: str, series: Series) -> None:
        """Adds the minutes of a channel that one source wrote."""
        rank = self.rank(source)
        kind = "a preferred source" if rank < 0 else _kind(source)
        self.ranked.append(RankedSeries(source, kind, rank, series))

    def sleep(self) -> list[Spell]:
        return sorted({spell for sleep in self._chosen()[0] for spell in sleep.spells})

    def all_events(self, report: IngestReport) -> tuple[RecordEvent, ...]:
        """Stages, the sleeps of which no stages are known, and exercises."""
        chosen, others = self._chosen()
        for each in others:
            report.unkeep(SLEEP_TOLD_AGAIN, each.file, rows=each.rows)
        plain = [RecordEvent("sleep", "asleep", each.start / 60, each.end / 60) for each in chosen if not each.spells]
        return (*super().all_events(report), *plain)

    def times(self, block: pl.DataFrame, columns: tuple[str, str]) -> tuple[pl.Series, pl.Series, pl.Series]:
        """(starts, ends, reasons why rows are bad) of two columns, which are at most a day apart."""
        (start, reasons), (end, end_reasons) = (self.instants(block[column]) for column in columns)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end < start).fill_null(False), "ends before it starts")
        return start, end, add_reason(reasons, (end - start > DAY).fill_null(False), TOO_LONG)

    def _chosen(self) -> tuple[list[Sleep], list[Sleep]]:
        """(each sleep as its best source tells it, what others tell of it); of equal sources the longer one counts."""
        kept, others = list[Sleep](), list[Sleep]()
        starts, ends = list[float](), list[float]()  # of those kept, in order
        for sleep in sorted(self.sleeps, key=lambda each: (each.rank, each.start - each.end, each.start)):
            place = bisect.bisect_left(starts, sleep.end - _MAX_OVERLAP)
            if place and ends[place - 1] > sleep.start + _MAX_OVERLAP:
                others.append(sleep)
                continue
            starts.insert(place, sleep.start)
            ends.insert(place, sleep.end)
            kept.append(sleep)
        return kept, others


def _kind(source: str) -> str:
    """What the report calls what wrote values; no name of a device, which its owner may have chosen."""
    name = source.casefold()
    if source in (JSON_FILES, CSV_FILES, WEB_API):
        return source
    if "health connect" in name or "health kit" in name:  # copies of what others recorded
        return "a copy of another app"
    return "a phone" if "mobiletrack" in name or "phone" in name else "a device"


def source_names(table: pl.DataFrame) -> pl.Series:
    """What wrote each row of a table."""
    if SOURCE not in table.columns or table[SOURCE].n_unique() > _MAX_SOURCES:
        return pl.repeat(CSV_FILES, len(table), eager=True)
    name = table[SOURCE].fill_null("").str.strip_chars().str.slice(0, 64)
    return name.set(name == "", CSV_FILES)
