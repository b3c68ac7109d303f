"""Events and labels from the rows of tables, by the rules of a mapping file.

A row is an event with an end of its own (a spell that somebody was asked about, a meal), or a sample of a class that
lasts a fixed time (the stage of sleep of 30 seconds). Samples of one name that follow each other become one event.
"""

from __future__ import annotations

import contextlib
import math

import polars as pl

from lsm_jax.ingest.cells import PERSON, add_reason, is_empty
from lsm_jax.ingest.described.columns import NO_ZONE, Origin, durations, good_rows, row_seconds
from lsm_jax.ingest.described.filters import passes
from lsm_jax.ingest.mapping.sections import EventRule, LabelRule
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import CLOCK

MAX_NAME_LENGTH = 64
# (second of the day they are about, or None; the labels; the clock of that time, or the zone the person lives in)
PersonLabels = list[tuple[float | None, dict[str, float | str], str | None]]
HOME = "__home__"
_NO_NAME = pl.Series([None], dtype=pl.String)


def event_rows(block: pl.DataFrame, rule: EventRule, origin: Origin) -> pl.DataFrame:
    """Good event rows: kind, name, start and end (seconds since the epoch), gap (seconds; null where not a sample)."""
    block = block.with_columns(__name__=_names(block, rule))
    used = block["__name__"].is_not_null() & passes(block, rule.keep, rule, origin)
    origin.report.rows_ignored += int((~used).sum())
    block = block.filter(used)
    second, reasons, clock = row_seconds(block, rule.time, origin)
    end = second + 60 * rule.minutes
    if rule.duration:
        end = second + durations(block, rule.duration, rule.duration_unit)
        reasons = add_reason(reasons, end.is_null() | (end < second).fill_null(True), "duration is not a number")
    elif rule.end:
        end, end_reasons, _ = row_seconds(block, rule.time, origin, column=rule.end)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end < second).fill_null(False), "ends before it starts")
    block, second = good_rows(block.with_columns(clock.alias(CLOCK), __end__=end), rule, second, reasons, origin)
    frame = pl.DataFrame({"name": block["__name__"], "start": second, "end": block["__end__"]})
    is_sample = not (rule.duration or rule.end) and (rule.name_column or rule.gap_minutes is not None)
    gap = 60 * (rule.gap_minutes or 0) if is_sample else None
    frame = frame.with_columns(kind=pl.lit(rule.kind), gap=pl.lit(gap, pl.Float64))
    if origin.needs_clocks:
        frame = frame.with_columns(block[CLOCK].cast(pl.Categorical))
    return frame if origin.person is not None else frame.with_columns(block[PERSON])


def _names(block: pl.DataFrame, rule: EventRule) -> pl.Series:
    """The name of each row's event; null where the row is none."""
    default = pl.repeat(rule.name or (None if rule.name_column else rule.kind), len(block), dtype=pl.String, eager=True)
    if not rule.name_column:
        return default
    cells = block[rule.name_column]
    text = cells.cast(pl.String).str.strip_chars().zip_with(~is_empty(cells), _NO_NAME)
    if rule.names:
        codes = text.str.replace(r"^(-?\d+)\.0+$", "$1")  # a code is often saved as 1.0
        return codes.replace_strict(rule.names, default=None, return_dtype=pl.String)
    return text.str.to_lowercase().str.slice(0, MAX_NAME_LENGTH).zip_with(text.is_not_null(), default)


def joined_events(rows: pl.DataFrame, report: IngestReport) -> tuple[RecordEvent, ...]:
    """Events in order of time, each once; samples of one name that follow each other are one event.

    Rows that repeat another are counted as duplicates of their kind.
    """
    if not len(rows):
        return ()
    table = rows.select("kind", "name", "start", "end", "gap")
    is_first = table.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    for kind, repeats in table["kind"].filter(~is_first).value_counts().sort("kind").iter_rows():
        report.duplicates[f"events {kind}"] += repeats
    table = table.filter(is_first).sort("start", "end")
    same = ["kind", "name", "gap"]
    begins = pl.col("start") > pl.col("end").cum_max().shift(1) + pl.col("gap") + 0.001
    # Rows that are no samples have no gap: each begins an event.
    table = table.with_columns(run=begins.fill_null(pl.col("gap").is_null()).cum_sum().over(same))
    spells = table.group_by(*same, "run", maintain_order=True).agg(pl.min("start"), pl.max("end"))
    spells = spells.select("kind", "name", "start", "end").sort("start", "end")
    return tuple(RecordEvent(kind, name, start / 60, end / 60) for kind, name, start, end in spells.iter_rows())


def add_labels(block: pl.DataFrame, rule: LabelRule, labels: dict[str, PersonLabels], origin: Origin) -> None:
    """Adds the labels of a block's people to `labels`, in the order of the rows."""
    second: pl.Series = pl.repeat(None, len(block), dtype=pl.Float64, eager=True)
    reasons: pl.Series = pl.repeat(None, len(block), dtype=pl.String, eager=True)
    clock = home = _home(block, rule)
    if rule.time_zone:
        reasons = add_reason(reasons, home.is_null(), NO_ZONE)
    if rule.time:
        second, time_reasons, clock = row_seconds(block, rule.time, origin)
        reasons = reasons.zip_with(reasons.is_not_null(), time_reasons)
    block = block.with_columns(clock.alias(CLOCK), home.alias(HOME))
    block, second = good_rows(block, rule, second, reasons, origin)
    ids = block[PERSON] if origin.person is None else [origin.person] * len(block)
    for person, at, row in zip(ids, second, block.iter_rows(named=True), strict=True):
        found = {name: _label(row[column]) for name, column in rule.columns.items()}
        about = {name: value for name, value in found.items() if value is not None}
        of_person = labels.setdefault(person, [])
        of_person.append((at, about, row[CLOCK] or None))
        if rule.time and row[HOME]:
            of_person.append((None, {}, row[HOME]))


def _home(block: pl.DataFrame, rule: LabelRule) -> pl.Series:
    """The zone in which each row's person lives: "" where it is not told, null where the cell means none."""
    zone = rule.time_zone
    if zone and zone.column:
        return zone.zones_of(block[zone.column])
    return pl.repeat(zone.name if zone else "", len(block), dtype=pl.String, eager=True)


def label_times(labels: PersonLabels) -> pl.DataFrame:
    """The times and clocks of a person's labels, in columns second and `CLOCK`."""
    rows = [(second, clock) for second, _, clock in labels]
    return pl.DataFrame(rows, schema={"second": pl.Float64, CLOCK: pl.String}, orient="row")


def _label(cell: object) -> float | str | None:
    """A number if it is one, else text; None if empty."""
    text = "" if cell is None else str(cell).strip()
    if text in ("", "NA", "NaN", "nan"):
        return None
    with contextlib.suppress(ValueError):
        number = float(text)
        if math.isfinite(number) and "_" not in text:
            return number
    return text[:MAX_NAME_LENGTH]
