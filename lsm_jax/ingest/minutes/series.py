"""From samples at any rate to one plausible value per minute."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.ingest.reader import Series
from lsm_jax.ingest.report import IngestReport

Aggregate = Literal["mean", "sum", "max", "min", "last", "difference"]
Instants = Float[np.ndarray, " n"] | Int[np.ndarray, " n"]
MinuteValues = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]
MIN_COVERED = 0.5  # share of a minute that the intervals of a count must cover
MAX_TOTAL_GAP_MINUTES = 60  # an increase of a running total over a longer time belongs to no known minute


def minute_series(
    channel: str,
    second: Instants,
    value: Float[np.ndarray, " n"],
    report: IngestReport,
    *,
    period_minutes: float | None = None,
    length: Float[np.ndarray, " n"] | None = None,
    aggregate: Aggregate | None = None,
    row: Int[np.ndarray, " n"] | None = None,
    writes_zeros: bool = True,
) -> Series:
    """Turns one sensor's samples into minute values.

    Levels ("mean" by default, "max", "min", "last"): samples outside the channel's range are counted and removed first,
    because they distort means. Samples of a minute are aggregated. A sample of a sensor slower than a minute fills the
    minutes until the next sample, at most its own period.

    Counts ("sum", the default of channels that count): a sample is the count of an interval. It is spread evenly over
    it. Of a minute that is covered for less than half nothing is known; one that is covered in part is scaled up to the
    whole. Samples without a known interval are added in their minute. Sums are held to the channel's range, samples
    only to its sign.

    Running totals ("difference"): the increase from one sample to the next is a count of the time between. A total that
    falls was reset, and what it shows was counted since.

    A sample that repeats another is dropped, unless `aggregate` says that all are averaged or added.

    Args:
      second: seconds since the Unix epoch, UTC, to the millisecond, in file order.
      value: in the registry's unit; NaN where a sample is not valid.
      period_minutes: the sampling period; None: at most a minute.
      length: seconds that each sample lasts, where that is known; NaN elsewhere.
      aggregate: how samples of one minute become one value; None: as the channel's registry entry says.
      row: what tells the samples of one instant apart; only equal ones are repeats. None: the value.
      writes_zeros: whether the device also writes counts of 0. Of one that does not, what intervals leave of a minute
        is 0 and not unknown.

    Raises:
      UserError: unknown channel.
    """
    kind = registered(channel)
    rule = aggregate or ("sum" if kind.is_count else "mean")
    counts = rule in ("sum", "difference")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which no channel is
        value = value.astype(np.float64 if counts else np.float32)
    low, high = (0 if kind.low >= 0 else -np.inf, np.inf) if counts else (kind.low, kind.high)
    plausible = _plausible(channel, value, low, high, report)
    days_without_value = (second[~plausible] // 86400).astype(np.int64)
    row = value.view(np.int64 if counts else np.int32) if row is None else row
    length = np.full(len(value), np.nan) if length is None else length
    order = _order(channel, second[plausible], row[plausible], aggregate not in ("mean", "sum"), report)
    second, value, length = (each[plausible][order] for each in (second, value, length))
    if counts:
        period = 60 * (period_minutes or 0)
        intervals = _increases if rule == "difference" else _intervals
        minute, value = _count_minutes(channel, *intervals(second, value, length, period), writes_zeros, report)
        plausible = _plausible(channel, value, kind.low, kind.high, report)
        days_without_value = np.append(days_without_value, minute[~plausible] // 1440)
        minute, value = minute[plausible], value[plausible]
    else:
        minute = (second // 60).astype(np.int64)
        first = np.flatnonzero(np.diff(minute, prepend=minute[:1] - 1))
        minute, value, length = minute[first], aggregated(value, first, rule), length[first]
        minutes = np.ceil(np.nan_to_num(length, nan=60 * (period_minutes or 1)) / 60).astype(np.int64).clip(1)
        if (minutes > 1).any():
            minute, value = _hold(minute, value, minutes)
    # A day with samples but without a value keeps one NaN, so that it is counted as a day without data.
    marker = np.setdiff1d(days_without_value, minute // 1440) * 1440 + 720
    return Series(channel, np.append(minute, marker), np.append(value, np.full(len(marker), np.nan, np.float32)))


def interval_counts(
    channel: str,
    start: Float[np.ndarray, " n"],
    end: Float[np.ndarray, " n"],
    count: Float[np.ndarray, " n"],
    report: IngestReport,
) -> Series:
    """Minute values of counts in intervals of seconds since the epoch. Where intervals overlap, both count."""
    kind = registered(channel)
    minute, value = _count_minutes(channel, start, end, count, True, report)
    plausible = _plausible(channel, value, kind.low, kind.high, report)
    return Series(channel, minute[plausible], value[plausible])


def _plausible(
    channel: str, value: Float[np.ndarray, " n"], low: float, high: float, report: IngestReport
) -> Bool[np.ndarray, " n"]:
    """Whether each value lies in [low, high]; NaN does not. Values outside are counted."""
    plausible = (value >= low) & (value <= high)
    if count := int((~plausible & ~np.isnan(value)).sum()):
        report.implausible[channel] += count
    return plausible


def _order(
    channel: str, time: Instants, row: Int[np.ndarray, " n"], drop: bool, report: IngestReport
) -> Int[np.ndarray, " m"]:
    """The samples in order of time, without those that repeat another where `drop` is set."""
    steps = np.diff(time)
    if (steps > 0).all():
        return np.arange(len(time))
    report.disordered += int((steps < 0).sum())
    order = np.lexsort((np.arange(len(time)), time))
    if not drop:
        return order
    # Equal rows of an instant become neighbours; of each the first stays, and the order of the file is restored.
    grouped = np.lexsort((row, time))
    same_time = time[grouped][1:] == time[grouped][:-1]
    equal = same_time & (row[grouped][1:] == row[grouped][:-1])
    report.duplicates[channel] += int(equal.sum())
    report.conflicts[channel] += int((same_time & ~equal).sum())
    repeats = np.zeros(len(time), bool)
    repeats[grouped[1:][equal]] = True
    return order[~repeats[order]]


Intervals = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def _intervals(
    second: Instants, value: Float[np.ndarray, " n"], length: Float[np.ndarray, " n"], period: float
) -> Intervals:
    """(start, end, count) of samples, each interval once. Where no length is known the end is the start.

    Samples that start together and differ in length are intervals of their own.
    """
    length = np.nan_to_num(length).clip(0)  # 0 where it is not known
    order = np.lexsort((length, second))
    second, value, length = second[order], value[order], length[order]
    first = np.flatnonzero((np.diff(second, prepend=second[:1] - 1) != 0) | (np.diff(length, prepend=-1) != 0))
    start, count = second[first].astype(np.float64), np.add.reduceat(value, first) if len(first) else value
    starts, length = np.unique(start), length[first]
    until_next = np.append(starts, np.inf)[np.searchsorted(starts, start, side="right")] - start
    held = np.minimum(period or _regular_period(starts), until_next)
    return start, start + np.where(length > 0, length, held), count


def _regular_period(start: Float[np.ndarray, " n"]) -> float:
    """The seconds between samples where at least 5 are regular and faster than a minute, else 0."""
    if len(start) < 5:
        return 0.0
    steps = np.diff(start)
    period = float(np.median(steps))
    return period if period < 60 and (abs(steps - period) <= period / 10).mean() >= 0.9 else 0.0


def _increases(
    second: Instants, total: Float[np.ndarray, " n"], _: Float[np.ndarray, " n"], period: float
) -> Intervals:
    """(start, end, count) between the samples of a running total; gaps that are too long are left out."""
    last = np.flatnonzero(np.diff(second, append=second[-1:] + 1))
    time, total = second[last].astype(np.float64), total[last]
    count = np.diff(total)
    count = np.where(count < 0, total[1:], count)
    near = np.diff(time) <= max(60 * MAX_TOTAL_GAP_MINUTES, 2 * period)
    return time[:-1][near], time[1:][near], count[near]


def _count_minutes(
    channel: str,
    start: Float[np.ndarray, " n"],
    end: Float[np.ndarray, " n"],
    count: Float[np.ndarray, " n"],
    writes_zeros: bool,
    report: IngestReport,
) -> MinuteValues:
    """Counts of intervals, spread over their minutes. A count without an interval covers its whole minute."""
    first = (start // 60).astype(np.int64)
    minutes = np.maximum(np.ceil(end / 60).astype(np.int64) - first, 1)
    each = np.repeat(np.arange(len(start)), minutes)
    minute = first[each] + np.arange(len(each)) - (np.cumsum(minutes) - minutes)[each]
    overlap = np.minimum(end[each], 60 * (minute + 1)) - np.maximum(start[each], 60 * minute)
    length = (end - start)[each]
    part = np.divide(overlap, length, out=np.ones(len(each)), where=length > 0)
    minute, place = np.unique(minute, return_inverse=True)
    covered = np.bincount(place, np.where((length > 0) & writes_zeros, overlap / 60, 1), len(minute))
    value = np.bincount(place, part * count[each], len(minute)) / np.clip(covered, MIN_COVERED, 1)
    partial = covered < MIN_COVERED - 1e-3
    if partial.any():
        report.partial_minutes[channel] += int(partial.sum())
    return minute, np.where(partial, np.nan, value).astype(np.float32)


def aggregated(
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
    minute: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], minutes: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Repeats each value until the next sample, for at most its own `minutes`."""
    length = np.minimum(np.diff(minute, append=minute[-1] + minutes[-1]), minutes)
    ends = np.cumsum(length)
    offset = np.arange(ends[-1]) - np.repeat(ends - length, length)
    return np.repeat(minute, length) + offset, np.repeat(value, length)
