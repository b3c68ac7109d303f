"""What the exports of one person hold: samples on disk, ranked by source; sleep, workouts and labels in memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from lsm_jax.channels import REGISTRY
from lsm_jax.ingest.formats.apple.types import BASAL, CHANNELS
from lsm_jax.ingest.minutes.ranked import SLEEP_TOLD_AGAIN, RankedSeries, best_of, set_aside_others
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.minutes.sleep import Spell, best_spells, sleep_series
from lsm_jax.ingest.reader import RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.by_person import RowsByPerson, load_slices

MAX_WORN_GAP_MINUTES = 15
_PART_ROWS = 100_000
GLUCOSE_MINUTES = 5  # sensors write a value every 5 minutes, without an interval
_MAX_SOURCES = 1000
# Counts that a worn watch would have written, had there been any.
_ZERO_WHEN_WORN = ("steps", "distance", "active_calories", "floors")


@dataclasses.dataclass(frozen=True)
class Source:
    """A device or an app that wrote records."""

    name: str
    is_watch: bool
    rank: int  # 0 is the best
    kind: str  # "a watch", "a phone", "a preferred source", or "" for others


class AppleRecording(Recording):
    """The exports of one person. Samples lie on disk, sorted by channel.

    Args:
      scratch: the folder for them.
      prefer: parts of names of sources that come before all others, the best first.
    """

    def __init__(self, scratch: Path, prefer: Sequence[str]) -> None:
        super().__init__()
        self.samples = RowsByPerson(scratch)
        self._prefer = [name.casefold() for name in prefer]
        self._numbers: dict[tuple[str, str], int] = {}
        self.sources: list[Source] = []
        # With the number of their source, and their file.
        self._stages: list[tuple[int, Spell, str]] = []
        self._workouts: list[tuple[int, RecordEvent, str]] = []

    def source(self, name: str, device: str) -> int:
        """The number of a source. Of the device only its model counts: the rest changes from record to record."""
        key = name, device.partition("model:")[2].partition(",")[0]
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._add_source(*key)
        return number

    def _add_source(self, name: str, model: str) -> int:
        name = " ".join(name.split())[:64] or "source without a name"
        if len(self.sources) >= _MAX_SOURCES:
            name, model = "other sources", ""
        words = f"{model or name}".casefold()
        is_watch, is_phone = "watch" in words, "phone" in words
        preferred = (place for place, part in enumerate(self._prefer) if part in name.casefold())
        kind = "a watch" if is_watch else "a phone" if is_phone else ""
        rank = next(preferred, len(self._prefer) + (0 if is_watch else 1 if is_phone else 2))
        source = Source(name, is_watch, rank, "a preferred source" if rank < len(self._prefer) else kind)
        if source not in self.sources:
            self.sources.append(source)
        return self.sources.index(source)

    def add_stage(self, source: int, spell: Spell) -> None:
        self._stages.append((source, spell, self.file))

    def add_workout(self, source: int, workout: RecordEvent) -> None:
        self._workouts.append((source, workout, self.file))

    def sleep(self) -> list[Spell]:
        """The stages of the best sources; each source has a rank that no other has."""
        ranks = self._ranks(number for number, _, _ in self._stages)
        return best_spells((ranks[number], spell) for number, spell, _ in self._stages)

    def all_events(self, report: IngestReport) -> tuple[RecordEvent, ...]:
        ranks = self._ranks(number for number, _, _ in self._stages)
        stages = sorted(self._stages, key=lambda each: ranks[each[0]])
        set_aside_others(((spell, file) for _, spell, file in stages), self.sleep(), SLEEP_TOLD_AGAIN, report)
        ranks = self._ranks(number for number, _, _ in self._workouts)
        self._events = [(ranks[number], workout, file) for number, workout, file in self._workouts]
        return super().all_events(report)

    def _ranks(self, numbers: Iterator[int]) -> dict[int, int]:
        """Number of a source -> its rank among those that occur; of equal ones the more frequent is the better."""
        counts = Counter(numbers)
        order = sorted(counts, key=lambda each: (self.sources[each].rank, -counts[each], self.sources[each].name))
        return {number: rank for rank, number in enumerate(order)}

    def _ranked(self, number: int, series: Series) -> RankedSeries:
        source = self.sources[number]
        return RankedSeries(source.name, source.kind or "another source", source.rank, series)

    def series(self, report: IngestReport) -> tuple[Series, ...]:
        """The best series of each channel. The samples are then removed from the disk."""
        best: dict[str, Series] = {}
        worn = np.empty(0, np.int64)
        for channel in dict.fromkeys(CHANNELS.values()):
            if slices := self.samples.slices.get(channel):
                table = load_slices(slices)
                parts = [
                    self._ranked(int(number), _minutes(channel, group, report))
                    for (number,), group in table.group_by("source", maintain_order=True)
                ]
                best[channel] = best_of(parts, report)
                if channel == "heart_rate":
                    watches = [number for number, each in enumerate(self.sources) if each.is_watch]
                    worn = _worn_minutes(table.filter(pl.col("source").is_in(watches)))
        for channel in _ZERO_WHEN_WORN:
            if channel in best and len(worn):
                best[channel] = _with_zeros(best[channel], worn)
        if basal := best.pop(BASAL, None):
            best["calories"] = _total(basal, best.get("active_calories"))
        for path in {each.path for slices in self.samples.slices.values() for each in slices}:
            Path(path).unlink()
        return (*best.values(), *sleep_series(self.sleep()))


def _minutes(channel: str, rows: pl.DataFrame, report: IngestReport) -> Series:
    """Minute values of one source; basal calories as if they were calories."""
    name = "calories" if channel == BASAL else channel
    parts = [_part_minutes(name, part, report) for part in _parts(rows.sort("second", maintain_order=True))]
    minute, value = (np.concatenate([getattr(part, field) for part in parts]) for field in ("minute", "value"))
    return Series(name, minute, value)


def _parts(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows in order of time in parts that share no minute, of about `_PART_ROWS` rows: temporary arrays stay small."""
    start = rows["second"].to_numpy() // 60
    end = np.maximum.accumulate((rows["second"] + rows["length"]).to_numpy()) // 60
    cuts = np.flatnonzero(start[1:] > end[:-1]) + 1
    begin = 0
    while len(rows) - begin > _PART_ROWS and len(later := cuts[cuts >= begin + _PART_ROWS]):
        yield rows[begin : int(later[0])]
        begin = int(later[0])
    yield rows[begin:]


def _part_minutes(name: str, rows: pl.DataFrame, report: IngestReport) -> Series:
    second, value, length = (rows[column].to_numpy() for column in ("second", "value", "length"))
    length = np.where(length > 0, length, np.nan)
    row = rows.select("value", "length", "kind").hash_rows().cast(pl.Int64, wrap_numerical=True).to_numpy()
    period = GLUCOSE_MINUTES if name == "glucose" else None
    return minute_series(name, second, value, report, length=length, row=row, period_minutes=period, writes_zeros=False)


def _worn_minutes(beats: pl.DataFrame) -> Int[np.ndarray, " n"]:
    """The minutes between two heart rates of one watch that are near each other."""
    minutes = [np.empty(0, np.int64)]
    for _, group in beats.group_by("source"):
        minute = (group["second"] // 60).cast(pl.Int64).unique().sort().to_numpy()
        gap = np.diff(minute)
        near = gap <= MAX_WORN_GAP_MINUTES
        length = gap[near]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        minutes.append(np.append(np.repeat(minute[:-1][near], length) + within, minute))
    return np.unique(np.concatenate(minutes))


def _with_zeros(series: Series, worn: Int[np.ndarray, " n"]) -> Series:
    """The series with 0 in the minutes in which a watch was worn and nobody counted anything."""
    zero = worn[np.isin(worn, series.minute[~np.isnan(series.value)], invert=True)]
    keep = ~np.isin(series.minute, zero)  # a marker of an empty day may lie in one
    minute = np.append(series.minute[keep], zero)
    value = np.append(series.value[keep], np.zeros(len(zero), np.float32))
    order = np.argsort(minute, kind="stable")
    return Series(series.channel, minute[order], value[order])


def _total(basal: Series, active: Series | None) -> Series:
    """Basal and active calories together, where the basal ones are known."""
    total = basal.value.astype(np.float64)
    if active is not None:
        recorded = ~np.isnan(active.value)
        _, place, added = np.intersect1d(basal.minute, active.minute[recorded], True, True)
        total[place] += active.value[recorded][added]
    highest = REGISTRY["calories"].high
    return Series("calories", basal.minute, np.where(total <= highest, total, np.nan).astype(np.float32))
