"""Events and labels from the rows of tables, by the rules of a mapping file (`mapping`).

A row is an event with an end of its own (a spell that somebody was asked about, a meal), or a sample of a class that
lasts a fixed time (the stage of sleep of 30 seconds). Samples of one name that follow each other become one event.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from lsm_jax.ingest.columns import Origin, durations, good_rows, row_ids, row_seconds
from lsm_jax.ingest.filters import passes
from lsm_jax.ingest.mapping import EventRule, LabelRule
from lsm_jax.ingest.parse import add_reason, is_empty
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.ingest.rows import PERSON

MAX_NAME_LENGTH = 64
PersonLabels = list[tuple[float | None, dict[str, float | str]]]  # (second of the day they are about, or None)
_NO_NAME = pl.Series([None], dtype=pl.String)


def event_rows(block: pl.DataFrame, rule: EventRule, origin: Origin) -> pl.DataFrame:
    """Good event rows: kind, name, start and end (seconds since the epoch), gap (seconds; null where not a sample)."""
    block = block.with_columns(__name__=_names(block, rule))
    used = block["__name__"].is_not_null() & passes(block, rule.keep, rule, origin)
    origin.report.rows_ignored += int((~used).sum())
    block = block.filter(used)
    second, reasons = row_seconds(block, rule, rule.time, origin)
    end = second + 60 * rule.minutes
    if rule.duration:
        end = second + durations(block, rule.duration, rule.duration_unit, rule.decimal)
        reasons = add_reason(reasons, end.is_null() | (end < second).fill_null(True), "duration is not a number")
    elif rule.end:
        end, end_reasons = row_seconds(block, rule, rule.time, origin, column=rule.end)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end < second).fill_null(False), "ends before it starts")
    block, second = good_rows(block.with_columns(__end__=end), rule, second, reasons, origin)
    frame = pl.DataFrame({"name": block["__name__"], "start": second, "end": block["__end__"]})
    is_sample = not (rule.duration or rule.end) and (rule.name_column or rule.gap_minutes is not None)
    gap = 60 * (rule.gap_minutes or 0) if is_sample else None
    frame = frame.with_columns(kind=pl.lit(rule.kind), gap=pl.lit(gap, pl.Float64))
    return frame if origin.person is not None else frame.with_columns(row_ids(block, rule).alias(PERSON))


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


def joined_events(frames: Sequence[pl.DataFrame]) -> tuple[RecordEvent, ...]:
    """Events in order of time, each once; samples of one name that follow each other are one event."""
    if not frames:
        return ()
    columns = ("kind", "name", "start", "end", "gap")
    table = pl.concat([frame.select(columns) for frame in frames]).unique(maintain_order=True).sort("start", "end")
    same = ["kind", "name", "gap"]
    begins = pl.col("start") > pl.col("end").cum_max().shift(1) + pl.col("gap") + 0.001
    # Rows that are no samples have no gap: each begins an event.
    table = table.with_columns(run=begins.fill_null(pl.col("gap").is_null()).cum_sum().over(same))
    spells = table.group_by(*same, "run", maintain_order=True).agg(pl.min("start"), pl.max("end"))
    rows = spells.select("kind", "name", "start", "end").sort("start", "end").iter_rows()
    return tuple(RecordEvent(kind, name, start / 60, end / 60) for kind, name, start, end in rows)


def add_labels(block: pl.DataFrame, rule: LabelRule, labels: dict[str, PersonLabels], origin: Origin) -> None:
    """Adds the labels of a block's people to `labels`, in the order of the rows."""
    second: pl.Series = pl.repeat(None, len(block), dtype=pl.Float64, eager=True)
    reasons: pl.Series = pl.repeat(None, len(block), dtype=pl.String, eager=True)
    if rule.time:
        second, reasons = row_seconds(block, rule, rule.time, origin)
    block, second = good_rows(block, rule, second, reasons, origin)
    ids = row_ids(block, rule) if origin.person is None else [origin.person] * len(block)
    for person, at, row in zip(ids, second, block.iter_rows(named=True), strict=True):
        found = {name: _label(row[column]) for name, column in rule.columns.items()}
        labels.setdefault(person, []).append((at, {name: value for name, value in found.items() if value is not None}))


def _label(cell: object) -> float | str | None:
    """A number if it is one, else text; None if empty."""
    text = "" if cell is None else str(cell).strip()
    if text in ("", "NA", "NaN", "nan"):
        return None
    try:
        return float(text)
    except ValueError:
        return text[:MAX_NAME_LENGTH]
