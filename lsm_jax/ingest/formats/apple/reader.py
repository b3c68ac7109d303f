"""Reads Apple Health exports: export.zip as the phone writes it, or the export.xml in it.

One export is one person. Its records are streamed (`xml`), sorted by channel into temporary files
(`records`) and read back channel by channel, so memory does not grow with the export.

- A source is a `sourceName`. Sources of one channel are ranked minute by minute: those that the user prefers, watches,
  phones, others.
- Counts are spread over their interval. Apple writes no zeros: what intervals leave of a minute is 0, and so is a
  minute between two heart rates of a watch that are at most 15 minutes apart.
- `calories` are the basal and the active ones, where the basal ones are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest.files.faults import reading
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.apple.records import ExportRecords, read_records
from lsm_jax.ingest.formats.apple.types import BASAL, CHANNELS, STAGES
from lsm_jax.ingest.formats.apple.xml import is_export, names_in
from lsm_jax.ingest.formats.personal import PersonalReader
from lsm_jax.ingest.minutes.ranked import RankedSeries, best_of
from lsm_jax.ingest.minutes.recording import labels_about
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.minutes.sleep import SLEEP_CHANNELS, STAGE_CHANNELS, STAGED, best_spells, sleep_events, sleep_series
from lsm_jax.ingest.people.exports import PersonFiles
from lsm_jax.ingest.reader import Evidence, PersonRecord, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.by_person import RowsByPerson, load_slices

MAX_WORN_GAP_MINUTES = 15
_PART_ROWS = 100_000
GLUCOSE_MINUTES = 5  # sensors write a value every 5 minutes, without an interval
_CHANNELS = tuple(name for name in REGISTRY if name in {*CHANNELS.values(), *SLEEP_CHANNELS, "calories"})
# Counts that a worn watch would have written, had there been any.
_ZERO_WHEN_WORN = ("steps", "distance", "active_calories", "floors")


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Files that start as the export does."""
    found = tuple(file for file in files if is_export(file))
    return Evidence("Apple Health export", found) if found else None


class AppleReader(PersonalReader):
    """Reader of Apple Health exports (see `reader.Reader`)."""

    def reads(self, file: SourceFile) -> str:
        return "" if is_export(file) else "not the export.xml of Apple Health"

    def channels(self, source: Path) -> tuple[str, ...]:
        """The channels of the records that occur, which a first pass looks for.

        Raises:
          UserError: no export, or one without records of these channels.
        """
        files = [file for file in source_files(source, IngestReport(), self._options.limits) if is_export(file)]
        if not files:
            raise UserError(
                f"{source} holds no Apple Health export: no XML file with an element HealthData. On the phone: Health, "
                "the picture of you, Export All Health Data; then give the folder that holds export.zip."
            )
        names = {name for file in files for name in names_in(file)}
        present = {CHANNELS[name] for name in names & CHANNELS.keys()}
        present |= {"calories"} if BASAL in present else set()
        stages = {STAGES[name] for name in names & STAGES.keys()}
        present |= {*STAGE_CHANNELS.values()} if stages & STAGED else set()
        present |= {"sleep_state"} if "asleep" in stages else set()
        if not present:
            raise UserError(f"{source}: the export of Apple Health holds no record that has a channel here.")
        return tuple(name for name in _CHANNELS if name in present)

    def read(self, _: Path, key: PersonFiles, report: IngestReport) -> PersonRecord | None:
        if self._options.scratch is None:
            raise UserError("the apple reader needs a scratch folder (ReaderOptions.scratch).")
        samples = RowsByPerson(self._options.scratch)
        found = ExportRecords(self._options.prefer)
        for file in key.files:
            report.use(file.label, "an export of Apple Health")
            with reading(file.label, report):
                read_records(file, found, samples, report)
        series = self._series(samples, found, report)
        for path in {each[0] for slices in samples.slices.values() for each in slices}:
            Path(path).unlink()
        spells = best_spells(found.ranked_spells())
        series += sleep_series(spells)
        if not any(len(each.minute) for each in series):
            report.people_without_data += 1
            return None
        sex = found.me.get("HKCharacteristicTypeIdentifierBiologicalSex", "").removeprefix("HKBiologicalSex")
        return PersonRecord(
            key.person,
            tuple(series),
            (*sleep_events(spells), *found.activities()),
            labels_about(found.me.get("HKCharacteristicTypeIdentifierDateOfBirth", ""), sex, series),
            time_zone=self._options.time_zone or "",
            offsets=found.offsets(),
            day_labels=tuple(found.day_labels),
            identity=self._options.people.identity(key.person),
        )

    def _series(self, samples: RowsByPerson, found: ExportRecords, report: IngestReport) -> list[Series]:
        """The best series of each channel."""
        best: dict[str, Series] = {}
        worn = np.empty(0, np.int64)
        for channel in dict.fromkeys(CHANNELS.values()):
            if slices := samples.slices.get(channel):
                table = load_slices(slices)
                parts = [
                    RankedSeries(
                        found.sources[number].name, found.sources[number].rank, _minutes(channel, group, report)
                    )
                    for (number,), group in table.group_by("source", maintain_order=True)
                ]
                best[channel] = best_of(parts, report)
                if channel == "heart_rate":
                    watches = [number for number, each in enumerate(found.sources) if each.is_watch]
                    worn = _worn_minutes(table.filter(pl.col("source").is_in(watches)))
        for channel in _ZERO_WHEN_WORN:
            if channel in best and len(worn):
                best[channel] = _with_zeros(best[channel], worn)
        if basal := best.pop(BASAL, None):
            best["calories"] = _total(basal, best.get("active_calories"))
        return list(best.values())


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
