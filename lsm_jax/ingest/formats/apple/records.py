"""Reads the records of an Apple Health export in blocks, checks them, and adds each to the recording."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import polars as pl

from lsm_jax.ingest.cells import PERSON, numbers, quarantine_rows
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.apple.recording import AppleRecording
from lsm_jax.ingest.formats.apple.types import CHANNELS, RESTING_HEART_RATE, SLEEP, STAGES, activity_name, unit_of
from lsm_jax.ingest.formats.apple.xml import Export
from lsm_jax.ingest.minutes.sleep import Spell
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.text import FIRST_SECOND, IMPOSSIBLE_DATE, LAST_SECOND, UNREADABLE

_BLOCK_ROWS = 1 << 16
_MAX_TYPES_SHOWN = 8
_DAY = 86400
MAX_COUNT_SECONDS = 3660  # a count of more than an hour belongs to no known minute
_COUNTS = ("steps", "distance", "active_calories", "floors")
_WORKOUT = "Workout"
_KINDS = pl.Enum([*CHANNELS, SLEEP, RESTING_HEART_RATE, _WORKOUT])


def read_records(file: SourceFile, found: AppleRecording, report: IngestReport) -> None:
    """Adds everything of an export to `found`.

    Raises:
      UnreadableFile: the rest of the file cannot be used; what comes before it has been added.
    """
    export, block, others = Export(file), _Block(), Counter[str]()
    try:
        for elements in export.elements():
            for name, attributes, line in elements:
                kind = attributes.get("type", "") if name == "Record" else name
                if kind in CHANNELS or kind in (SLEEP, RESTING_HEART_RATE) or name == _WORKOUT:
                    number = found.source(attributes.get("sourceName", ""), attributes.get("device", ""))
                    block.add(kind, number, attributes, line)
                elif name == "Me":
                    sex = attributes.get("HKCharacteristicTypeIdentifierBiologicalSex", "")
                    found.sex = sex.removeprefix("HKBiologicalSex")
                    found.born = attributes.get("HKCharacteristicTypeIdentifierDateOfBirth", "")
                elif name != "ExportDate":
                    others[kind] += 1
            if len(block.line) >= _BLOCK_ROWS:
                _sort(block, file, found, report)
                block = _Block()
    finally:
        _sort(block, file, found, report)
        report.rows_read += others.total() + len(export.damage)
        report.rows_ignored += others.total()
        for line, reason in export.damage:
            report.quarantine(f"damaged XML ({reason})", file.label, [line])
        if others:
            names = [kind for kind, _ in others.most_common() if re.fullmatch(r"[A-Za-z]{1,90}", kind)]
            shown = ", ".join(f"{kind} {others[kind]:,}" for kind in names[:_MAX_TYPES_SHOWN])
            report.note(f"{file.label}: {len(others)} kinds of records have no channel here: {shown}")
        if export.end:
            report.set_aside(file.label, export.end)


class _Block:
    """Columns of records as they are written."""

    def __init__(self) -> None:
        self.kind, self.source, self.line = list[str](), list[int](), list[int]()
        self.start, self.end = list[str | None](), list[str | None]()
        self.value, self.unit = list[str | None](), list[str | None]()

    def add(self, kind: str, source: int, attributes: dict[str, str], line: int) -> None:
        self.kind.append(kind)
        self.source.append(source)
        self.line.append(line)
        self.start.append(attributes.get("startDate"))
        self.end.append(attributes.get("endDate"))
        self.value.append(attributes.get("workoutActivityType" if kind == _WORKOUT else "value"))
        self.unit.append(attributes.get("unit"))

    def frame(self) -> pl.DataFrame:
        texts = dict.fromkeys(("start", "end", "value", "unit"), pl.String)
        schema: dict[str, Any] = {"kind": _KINDS, "source": pl.UInt16, "line": pl.Int64, **texts}
        return pl.DataFrame({name: getattr(self, name) for name in schema}, schema=schema)


def _sort(block: _Block, file: SourceFile, found: AppleRecording, report: IngestReport) -> None:
    """Checks a block's records and puts each where it belongs."""
    rows = block.frame()
    report.rows_read += len(rows)
    start, offset = _instants(rows["start"])
    end, _ = _instants(rows["end"])
    units = _conversions(rows)
    rows = rows.select("kind", "source", "line", text="value").with_columns(
        start, end, offset, *units, length=end - start, value=numbers(rows["value"]), channel=_channels(rows["kind"])
    )
    good = quarantine_rows(rows["line"], rows.select(_reasons()).to_series(), file.label, report)
    rows = rows.filter(good)
    hours = rows.select((pl.col("start") // 3600).cast(pl.Int64), "offset").unique(maintain_order=True)
    for hour, minutes in hours.iter_rows():
        found.offsets.setdefault(60 * hour, minutes)
    found.samples.add(
        rows.filter(pl.col("channel").is_not_null()).select(
            pl.col("channel").alias(PERSON),
            pl.col("kind").to_physical(),
            "source",
            pl.col("start").alias("second"),
            "length",
            _value_in_unit(),
        )
    )
    for kind, source, begin, finish, text, value, minutes in (
        rows.filter(pl.col("channel").is_null())
        .select("kind", "source", "start", "end", "text", "value", "offset")
        .iter_rows()
    ):
        if kind == SLEEP:
            found.add_stage(source, Spell(begin, finish, STAGES[text]))
        elif kind == _WORKOUT:
            found.add_workout(source, RecordEvent("activity", activity_name(text), begin / 60, finish / 60))
        else:  # of the day on whose clock it is written, at whatever hour
            noon = (begin // 60 + minutes) // 1440 * 1440 + 720 - minutes
            found.add_day_labels(60 * noon, {"resting_heart_rate": value}, rank=found.sources[source].rank)


def _instants(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(UTC seconds, local minus UTC in minutes) of times such as 2023-05-01 07:01:02 -0700; null for other text."""
    wall = text.str.slice(0, 19).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s")
    written = text.str.extract(r"^.{19} ([+-]\d{4})$").cast(pl.Int32, strict=False)
    offset = written.abs() // 100 * 60 + written.abs() % 100
    offset = offset.zip_with(written >= 0, -offset)
    offset = offset.zip_with(offset.abs() <= 14 * 60, pl.Series([None], dtype=pl.Int32))
    return (wall - 60 * offset.cast(pl.Int64)).cast(pl.Float64).rename(text.name), offset.rename("offset")


def _channels(kinds: pl.Series) -> pl.Series:
    return kinds.cast(pl.String).replace_strict(CHANNELS, default=None, return_dtype=pl.String)


def _conversions(rows: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """(scale, shift) from each record's unit to the registry's; null where it cannot be converted."""
    pairs = rows.select("kind", "unit").unique()
    found = [unit_of(CHANNELS.get(kind, ""), unit or "") or (None, None) for kind, unit in pairs.iter_rows()]
    scales = pl.DataFrame(found, schema={"scale": pl.Float64, "shift": pl.Float64}, orient="row")
    table = rows.select("kind", "unit").join(
        pairs.with_columns(*scales), on=["kind", "unit"], how="left", nulls_equal=True, maintain_order="left"
    )
    return table["scale"], table["shift"]


def _reasons() -> pl.Expr:
    """Why a record is not good; null for a good one."""
    kind, channel, length = pl.col("kind").cast(pl.String), pl.col("channel"), pl.col("length")
    is_sample = channel.is_not_null()
    has_number = is_sample | (kind == RESTING_HEART_RATE)
    return (
        pl.when(length.is_null())
        .then(pl.lit(UNREADABLE))
        .when(~pl.col("start").is_between(FIRST_SECOND, LAST_SECOND, closed="left"))
        .then(pl.lit(IMPOSSIBLE_DATE))
        .when(length < 0)
        .then(pl.lit("ends before it starts"))
        .when(has_number & ~pl.col("value").is_finite().fill_null(False))
        .then(pl.lit("value is not a number"))
        .when(is_sample & pl.col("scale").is_null())
        .then(pl.lit("unit cannot be converted"))
        .when(channel.is_in(_COUNTS) & (length > MAX_COUNT_SECONDS))
        .then(pl.lit("count over more than an hour, of which no minute is known"))
        .when(length > _DAY)
        .then(pl.lit("lasts longer than a day"))
        .when((kind == SLEEP) & ~pl.col("text").is_in(list(STAGES)).fill_null(False))
        .then(pl.lit("unknown stage of sleep"))
        .when((kind == _WORKOUT) & pl.col("text").is_null())
        .then(pl.lit("workout without a type"))
    )


def _value_in_unit() -> pl.Expr:
    """Values in the registry's unit. A share of oxygen above 1 was written in percent already."""
    value = pl.col("value") * pl.col("scale") + pl.col("shift")
    return pl.when((pl.col("channel") == "spo2") & (pl.col("value") > 1)).then(pl.col("value")).otherwise(value)
