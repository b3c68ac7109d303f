"""Cuts one person's record into days of local wall-clock time.

A day is 1440 minutes of the wall clock, starting at local midnight, so that a column of a window always means the same
hour of a person's day. The hour that the clock skips in spring is therefore unobserved. Of the hour that it repeats in
autumn the first pass is kept and the second is counted (`repeated_hour_minutes`); wall-clock text is always
read as the first pass (`parse.epoch_seconds`).

Several sensors of one channel are merged minute by minute. Where more than one recorded (`overlaps`), heavy-tailed
channels and sleep stages take the largest value, since a phone left on the table says nothing about the watch's steps.
Other channels take the mean.
"""

from __future__ import annotations

import datetime as dt
import functools
import zoneinfo
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.ingest.reader import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window, checked_window, hash_participant

_EPOCH = dt.date(1970, 1, 1)
MinuteValues = tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]


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
        name: _merge([series for series in record.series if series.channel == name], record.time_zone, report)
        for name in channels
    }
    minutes = [_wall_minutes(series.minute, record.time_zone) for series in record.series if series.channel in merged]
    days = np.unique(np.concatenate([np.empty(0, np.int64), *minutes]) // MINUTES_PER_DAY)
    events = _wall_events(record)
    participant = hash_participant(record.person, salt)
    written = 0
    for day in days.tolist():
        window = _day_window(day, merged, record, participant, events, report)
        if window is None:
            report.days_without_data += 1
            continue
        written += 1
        yield window
    report.days += written
    report.people += bool(written)
    report.people_without_data += not written


def _day_window(
    day: int,
    merged: dict[str, MinuteValues],
    record: PersonRecord,
    participant: str,
    events: Sequence[RecordEvent],
    report: IngestReport,
) -> Window | None:
    values = np.full((MINUTES_PER_DAY, len(merged)), np.nan, np.float32)
    midnight = day * MINUTES_PER_DAY
    for column, (minute, value) in enumerate(merged.values()):
        begin, end = np.searchsorted(minute, (midnight, midnight + MINUTES_PER_DAY))
        values[minute[begin:end] - midnight, column] = value[begin:end]
    start, offset = _local_midnight(day, record.time_zone)
    # `minute_series` has removed and counted implausible samples, so that nothing is out of range here.
    window, _ = checked_window(
        values,
        list(merged),
        participant=participant,
        start=start,
        utc_offset_minutes=offset,
        labels=record.labels,
        events=_events_of_day(events, midnight),
    )
    if not window.observed.any():
        return None
    for name, count in zip(merged, window.observed.sum(axis=0).tolist(), strict=True):
        report.cells[name] += MINUTES_PER_DAY
        report.observed_cells[name] += count
    return window


def _merge(sensors: Sequence[Series], time_zone: str, report: IngestReport) -> MinuteValues:
    """All sensors of one channel as sorted wall-clock minutes, each once, and their values."""
    recorded = [_on_wall_clock(series, time_zone, report) for series in sensors]
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
    counts = np.diff(first, append=len(minute))
    report.overlaps[sensors[0].channel] += int((counts > 1).sum())
    kind = registered(sensors[0].channel)
    if kind.heavy_tailed or kind.name == "sleep_state":
        return minute[first], np.maximum.reduceat(value, first)
    return minute[first], (np.add.reduceat(value.astype(np.float64), first) / counts).astype(np.float32)


def _on_wall_clock(series: Series, time_zone: str, report: IngestReport) -> MinuteValues:
    """The minutes that have a value, on the wall clock. Of a repeated hour only the first pass is returned."""
    recorded = ~np.isnan(series.value)
    wall, value = _wall_minutes(series.minute[recorded], time_zone), series.value[recorded]
    if (np.diff(wall) > 0).all():
        return wall, value
    # Minutes are in UTC order, so the first index of a wall minute is its first pass.
    minute, first = np.unique(wall, return_index=True)
    report.repeated_hour_minutes += len(wall) - len(minute)
    return minute, value[first]


def _wall_minutes(minute: Int[np.ndarray, " n"], time_zone: str) -> Int[np.ndarray, " n"]:
    """Converts minutes since the epoch, UTC, to minutes of the local wall clock since 1970-01-01 00:00 local."""
    if time_zone == "UTC" or not len(minute):
        return minute
    instants = pl.from_epoch(pl.Series(minute * 60), time_unit="s").dt.replace_time_zone("UTC")
    wall = instants.dt.convert_time_zone(time_zone).dt.replace_time_zone(None)
    return wall.dt.epoch("s").to_numpy() // 60


def _wall_events(record: PersonRecord) -> list[RecordEvent]:
    starts = _wall_minutes(np.array([event.start for event in record.events], np.int64), record.time_zone)
    ends = _wall_minutes(np.array([event.end for event in record.events], np.int64), record.time_zone)
    return [
        RecordEvent(event.kind, event.name, int(start), int(max(start, end)))
        for event, start, end in zip(record.events, starts, ends, strict=True)
    ]


def _events_of_day(events: Sequence[RecordEvent], midnight: int) -> list[Event]:
    """The events of a day, clipped to it. An event without length belongs to the day in which it starts."""
    end = midnight + MINUTES_PER_DAY
    return [
        Event(event.kind, event.name, max(event.start - midnight, 0), min(event.end - midnight, MINUTES_PER_DAY))
        for event in events
        if event.start < end and (event.end > midnight or event.start >= midnight)
    ]


@functools.lru_cache(maxsize=4096)
def _local_midnight(day: int, time_zone: str) -> tuple[dt.datetime, int]:
    """(UTC instant, local minus UTC in minutes) of the day's first wall-clock minute."""
    midnight = dt.datetime.combine(_EPOCH + dt.timedelta(days=day), dt.time(), zoneinfo.ZoneInfo(time_zone))
    offset = midnight.utcoffset() or dt.timedelta()
    return midnight.astimezone(dt.UTC), int(offset.total_seconds() // 60)
