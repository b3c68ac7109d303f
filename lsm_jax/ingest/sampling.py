"""From samples at any rate to one plausible value per minute."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.ingest.reader import Series
from lsm_jax.ingest.report import IngestReport

Aggregate = Literal["mean", "sum", "max", "min", "last"]
Instants = Float[np.ndarray, " n"] | Int[np.ndarray, " n"]


def minute_series(
    channel: str,
    second: Instants,
    value: Float[np.ndarray, " n"],
    report: IngestReport,
    *,
    period_minutes: int = 1,
    aggregate: Aggregate = "mean",
) -> Series:
    """Turns one sensor's samples into minute values.

    Samples outside the channel's range are counted and removed first, because they distort means: the mean of 124 bpm
    and an artefact's 0 would look real. Samples of a sum are parts of a minute's value, so they may lie below the range
    (but be negative only where the range allows it), and the sums are checked as well.

    Samples of a minute are aggregated. A sensor slower than a minute is observed for its own sampling period: a sample
    fills the minutes until the next sample, at most `period_minutes` of them. A repeated sample is dropped; of several
    values at one instant the last in the file is kept, since later exports correct earlier ones. Both are counted, and
    so is disorder.

    Args:
      second: seconds since the Unix epoch, UTC, to the millisecond, in file order.
      value: in the registry's unit; NaN where a sample is not valid.
      period_minutes: the sampling period where it is more than a minute.
      aggregate: how samples of one minute become one value.

    Raises:
      UserError: unknown channel.
    """
    kind = registered(channel)
    value = value.astype(np.float32)
    low, high = (0 if kind.low >= 0 else -np.inf, np.inf) if aggregate == "sum" else (kind.low, kind.high)
    plausible = _plausible(channel, value, low, high, report)
    days_without_value = (second[~plausible] // 86400).astype(np.int64)
    second, value = _sort_and_deduplicate(channel, second[plausible], value[plausible], report)
    minute = (second // 60).astype(np.int64)
    first = np.flatnonzero(np.diff(minute, prepend=minute[:1] - 1))
    if len(first) < len(minute):
        minute, value = minute[first], _aggregate(value, first, aggregate)
    if period_minutes > 1:
        minute, value = _hold(minute, value, period_minutes)
    if aggregate == "sum":
        plausible = _plausible(channel, value, kind.low, kind.high, report)
        days_without_value = np.append(days_without_value, minute[~plausible] // 1440)
        minute, value = minute[plausible], value[plausible]
    # A day with samples but without a value keeps one NaN, so that it is counted as a day without data.
    marker = np.setdiff1d(days_without_value, minute // 1440) * 1440 + 720
    return Series(channel, np.append(minute, marker), np.append(value, np.full(len(marker), np.nan, np.float32)))


def _plausible(
    channel: str, value: Float[np.ndarray, " n"], low: float, high: float, report: IngestReport
) -> Bool[np.ndarray, " n"]:
    """Whether each value lies in [low, high]; NaN does not. Values outside are counted."""
    plausible = (value >= low) & (value <= high)
    if count := int((~plausible & ~np.isnan(value)).sum()):
        report.implausible[channel] += count
    return plausible


def _sort_and_deduplicate(
    channel: str, time: Instants, value: Float[np.ndarray, " n"], report: IngestReport
) -> tuple[Instants, Float[np.ndarray, " m"]]:
    """Sorts by time. Of samples at the same time the last in file order is kept."""
    steps = np.diff(time)
    if (steps > 0).all():
        return time, value
    report.disordered += int((steps < 0).sum())
    order = np.argsort(time, kind="stable")
    time, value = time[order], value[order]
    repeated = time[1:] == time[:-1]
    equal = repeated & (value[1:] == value[:-1])
    if repeated.any():
        report.duplicates[channel] += int(equal.sum())
        report.conflicts[channel] += int((repeated & ~equal).sum())
    last = np.append(~repeated, True)
    return time[last], value[last]


def _aggregate(
    value: Float[np.ndarray, " n"], first: Int[np.ndarray, " m"], aggregate: Aggregate
) -> Float[np.ndarray, " m"]:
    """One value for each minute; `first` holds the index of each minute's first sample."""
    counts = np.diff(first, append=len(value))
    if aggregate == "last":
        return value[first + counts - 1]
    if aggregate in ("max", "min"):
        return getattr(np, f"{aggregate}imum").reduceat(value, first)
    totals = np.add.reduceat(value.astype(np.float64), first)
    return (totals / counts if aggregate == "mean" else totals).astype(np.float32)


def _hold(
    minute: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], period: int
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Repeats each value until the next sample, for at most `period` minutes."""
    if not len(minute):
        return minute, value
    length = np.minimum(np.diff(minute, append=minute[-1] + period), period)
    ends = np.cumsum(length)
    offset = np.arange(ends[-1]) - np.repeat(ends - length, length)
    return np.repeat(minute, length) + offset, np.repeat(value, length)
