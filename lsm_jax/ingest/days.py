"""From samples at any rate to one plausible value per minute, and from one person's minutes to days.

A day is 1440 minutes of the wall clock, starting at local midnight, so that a column of a window always means the same
hour of a person's day. The hour that the clock skips in spring is therefore unobserved. Of the hour that it repeats in
autumn the first pass is kept and the second is counted (`repeated_hour_minutes`); wall-clock text is always
read as the first pass (`parse.epoch_seconds`).

Several sensors of one channel are merged minute by minute. Where more than one recorded (`overlaps`), heavy-tailed
channels and sleep stages take the largest value, since a phone left on the table says nothing about the watch's steps.
Other channels take the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.ingest.clock import Clock
from lsm_jax.ingest.person import identity
from lsm_jax.ingest.reader import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window, checked_window, hash_participant

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
        minute, value, length = minute[first], _aggregate(value, first, rule), length[first]
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
    """(start, end, count) of sorted samples, each start once. Where no length is known the end is the start."""
    first = np.flatnonzero(np.diff(second, prepend=second[:1] - 1))
    start, count = second[first].astype(np.float64), np.add.reduceat(value, first) if len(first) else value
    until_next = np.diff(start, append=np.inf)
    known = np.nan_to_num(length[first])
    return start, start + np.where(known > 0, known, np.minimum(period or _regular_period(start), until_next)), count


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
    minute: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], minutes: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Repeats each value until the next sample, for at most its own `minutes`."""
    length = np.minimum(np.diff(minute, append=minute[-1] + minutes[-1]), minutes)
    ends = np.cumsum(length)
    offset = np.arange(ends[-1]) - np.repeat(ends - length, length)
    return np.repeat(minute, length) + offset, np.repeat(value, length)


# Days.


def day_windows(record: PersonRecord, channels: Sequence[str], salt: str, report: IngestReport) -> Iterator[Window]:
    """Day windows of a person in order of time. Days without an observed cell are left out and counted.

    Args:
      record: one person.
      channels: canonical names of the windows' columns; channels the record lacks are never observed.
      salt: keys the participant's pseudonym.

    Raises:
      UserError: unknown channel.
    """
    merged = {
        name: _merge([series for series in record.series if series.channel == name], record.clock, report)
        for name in channels
    }
    days_of_each = [
        np.unique(record.clock.wall_minutes(series.minute) // MINUTES_PER_DAY)
        for series in record.series
        if series.channel in merged
    ]
    days = np.unique(np.concatenate([np.empty(0, np.int64), *days_of_each]))
    events, day_labels = _wall_events(record), _labels_by_day(record, report)
    participant = hash_participant(record.identity or identity(record.person), salt)
    written = 0
    for day in days.tolist():
        midnight = day * MINUTES_PER_DAY
        values = np.full((MINUTES_PER_DAY, len(merged)), np.nan, np.float32)
        for column, (minute, value) in enumerate(merged.values()):
            begin, end = np.searchsorted(minute, (midnight, midnight + MINUTES_PER_DAY))
            values[minute[begin:end] - midnight, column] = value[begin:end]
        instant, offset = record.clock.midnight(day)
        # `minute_series` has removed and counted implausible samples, so that nothing is out of range here.
        window, _ = checked_window(
            values,
            list(merged),
            participant=participant,
            start=instant,
            utc_offset_minutes=offset,
            labels={**record.labels, **day_labels.get(day, {})},
            events=_events_of_day(events, midnight),
        )
        if not window.observed.any():
            report.days_without_data += 1
            continue
        report.people += not written
        report.days += 1
        written += 1
        for name, count in zip(merged, window.observed.sum(axis=0).tolist(), strict=True):
            report.cells[name] += MINUTES_PER_DAY
            report.observed_cells[name] += count
        yield window
    if written and not record.clock.is_known:
        report.people_on_wall_clock += record.is_wall_clock
        report.people_in_utc += not record.is_wall_clock
    report.people_without_data += not written


def _merge(sensors: Sequence[Series], clock: Clock, report: IngestReport) -> MinuteValues:
    """All sensors of one channel as sorted wall-clock minutes, each once, and their values."""
    recorded = [_on_wall_clock(series, clock, report) for series in sensors]
    recorded = [(minute, value) for minute, value in recorded if len(minute)]
    if not recorded:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if len(recorded) == 1:
        return recorded[0]
    minute = np.concatenate([minute for minute, _ in recorded])
    value = np.concatenate([value for _, value in recorded])
    order = np.argsort(minute, kind="stable")
    minute, value = minute[order], value[order]
    first = np.flatnonzero(np.diff(minute, prepend=minute[0] - 1))
    kind = registered(sensors[0].channel)
    report.overlaps[kind.name] += int((np.diff(first, append=len(minute)) > 1).sum())
    largest = kind.heavy_tailed or kind.name == "sleep_state"
    return minute[first], _aggregate(value, first, "max" if largest else "mean")


def _on_wall_clock(series: Series, clock: Clock, report: IngestReport) -> MinuteValues:
    """The minutes that have a value, on the wall clock. Of a repeated hour only the first pass is returned."""
    recorded = ~np.isnan(series.value)
    wall, value = clock.wall_minutes(series.minute[recorded]), series.value[recorded]
    # Minutes are in UTC order, so the first index of a wall minute is its first pass.
    minute, first = np.unique(wall, return_index=True)
    report.repeated_hour_minutes += len(wall) - len(minute)
    return minute, value[first]


def _wall_events(record: PersonRecord) -> list[RecordEvent]:
    times = np.array([(event.start, event.end) for event in record.events], np.float64).reshape(-1)
    minute = np.floor(times).astype(np.int64)
    wall = (record.clock.wall_minutes(minute) + (times - minute)).reshape(-1, 2).tolist()
    return [
        RecordEvent(event.kind, event.name, start, max(start, end))
        for event, (start, end) in zip(record.events, wall, strict=True)
    ]


def _labels_by_day(record: PersonRecord, report: IngestReport) -> dict[int, dict[str, float | str]]:
    """The labels of each local day; a later one of the same name replaces an earlier one."""
    minutes = np.array([minute for minute, _ in record.day_labels], np.int64)
    days = (record.clock.wall_minutes(minutes) // MINUTES_PER_DAY).tolist()
    found: dict[int, dict[str, float | str]] = {}
    for day, (_, labels) in zip(days, record.day_labels, strict=True):
        report.add_labels(found.setdefault(day, {}), labels)
    return found


def _events_of_day(events: Sequence[RecordEvent], midnight: int) -> list[Event]:
    """The events of a day, clipped to it, to the millisecond. One without length belongs to the day it starts in."""
    end = midnight + MINUTES_PER_DAY

    def minute(time: float) -> float:
        return min(max(round(time - midnight, 5), 0), MINUTES_PER_DAY)

    return [
        Event(event.kind, event.name, minute(event.start), minute(event.end))
        for event in events
        if event.start < end and (event.end > midnight or event.start >= midnight)
    ]
