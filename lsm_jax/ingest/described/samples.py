"""Minute values from the rows of tables, by the rules of a mapping file."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from lsm_jax.ingest.cells import LINE, PERSON, add_reason, is_empty, numbers
from lsm_jax.ingest.described.columns import Origin, good_rows, row_seconds, with_text_values
from lsm_jax.ingest.described.filters import passes
from lsm_jax.ingest.mapping.sections import TableRule
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.reader import Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import CLOCK

_NO_NUMBER = pl.Series([None], dtype=pl.Float64)


def sample_rows(block: pl.DataFrame, rule: TableRule, index: int, origin: Origin) -> pl.DataFrame:
    """The good rows for each channel: rule (`index`), channel, sensor, second, value (NaN: not valid), invalid."""
    if rule.signal:
        signals = [signal for channel in rule.channels.values() for signal in channel.signals]
        used = block[rule.signal].cast(pl.String).is_in(signals).fill_null(False)
        origin.report.rows_ignored += int((~used).sum())
        block = block.filter(used)
    for name, channel in rule.channels.items():
        block = with_text_values(block, rule.value or channel.column, channel, name, origin)
    second, reasons, clock = row_seconds(block, rule.time, origin)
    end = pl.repeat(None, len(block), dtype=pl.Float64, eager=True)
    if rule.end:
        end, end_reasons, _ = row_seconds(block, rule.time, origin, column=rule.end)
        reasons = reasons.zip_with(reasons.is_not_null(), end_reasons)
        reasons = add_reason(reasons, (end < second).fill_null(False), "ends before it starts")
    block = block.with_columns(
        clock.cast(pl.Categorical).alias(CLOCK),
        (end - second).cast(pl.Float32).alias("__length__"),
        *(numbers(block[column]).alias(_number_of(column)) for column in _value_columns(rule)),
    )
    reasons = add_reason(reasons, _unreadable_rows(block, rule, reasons, origin), "value is not a number")
    block, second = good_rows(block, rule, second, reasons, origin)
    sensor = block[rule.sensor] if rule.sensor else pl.repeat(origin.file, len(block), eager=True)
    shared = {"sensor": sensor.cast(pl.String).fill_null("").hash(), "second": second, "length": block["__length__"]}
    shared["row"] = block.select(rule.used_columns).hash_rows().cast(pl.Int64, wrap_numerical=True)
    if origin.person is None:
        shared[PERSON] = block[PERSON]
    if origin.needs_clocks:
        shared[CLOCK] = block[CLOCK]
    frames, kept = [], passes(block, rule.keep, rule, origin)
    signal = block[rule.signal].cast(pl.String) if rule.signal else None
    for number, (name, channel) in enumerate(rule.channels.items()):
        scale, offset = channel.to_registry_unit(name)
        value = block[_number_of(rule.value or channel.column)] * scale + offset
        of_channel = value.is_not_null() if signal is None else signal.is_in(channel.signals)
        valid = kept & passes(block, channel.keep, rule, origin)
        value = value.zip_with(valid, _NO_NUMBER).fill_null(float("nan")).cast(pl.Float32)
        frame = pl.DataFrame(shared | {"value": value, "invalid": ~valid}).filter(of_channel)
        frames.append(frame.with_columns(rule=pl.lit(index, pl.UInt16), channel=pl.lit(number, pl.UInt16)))
    return pl.concat(frames)


def sample_series(samples: pl.DataFrame, tables: Sequence[TableRule], report: IngestReport) -> tuple[Series, ...]:
    """One series per channel and sensor of one person's `sample_rows`."""
    series = []
    for (index, number, _), group in samples.group_by("rule", "channel", "sensor", maintain_order=True):
        table = tables[int(str(index))]
        channel, rule = list(table.channels.items())[int(str(number))]
        report.invalid[channel] += int(group["invalid"].sum())
        second, value, length, row = (group[name].to_numpy() for name in ("second", "value", "length", "row"))
        made = minute_series(
            channel,
            second,
            value,
            report,
            period_minutes=table.period_minutes,
            length=length,
            aggregate=rule.aggregate,
            row=row,
        )
        series.append(made)
    return tuple(series)


def _value_columns(rule: TableRule) -> dict[str, str]:
    """The columns of values, each once, with the first channel that has it."""
    columns: dict[str, str] = {}
    for name, channel in rule.channels.items():
        columns.setdefault(rule.value or channel.column, name)
    return columns


def _number_of(column: str) -> str:
    """The name under which a column's cells stand as numbers."""
    return f"__number__{column}"


def _unreadable_rows(block: pl.DataFrame, rule: TableRule, reasons: pl.Series, origin: Origin) -> pl.Series:
    """Whether each row has a damaged cell and no number. Damaged cells of other rows are counted."""
    any_damaged, any_number = pl.repeat(False, len(block), eager=True), pl.repeat(False, len(block), eager=True)
    damaged: dict[str, pl.Series] = {}
    for column, name in _value_columns(rule).items():
        number = block[_number_of(column)]
        any_number |= number.is_not_null()
        if number.null_count():
            damaged[name] = number.is_null() & ~is_empty(block[column])
            any_damaged |= damaged[name]
    for name, is_damaged in damaged.items():
        lines = block[LINE].filter(is_damaged & any_number & reasons.is_null())
        origin.report.damage(name, origin.file, lines.to_list())
    return any_damaged & ~any_number
