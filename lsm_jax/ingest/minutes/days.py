"""From one person's minutes to days.

A day is 1440 minutes of the wall clock, starting at local midnight, so that a column of a window always means the same
hour of a person's day. The hour that the clock skips in spring is therefore unobserved. Of the hour that it repeats in
autumn the first pass is kept and the second is counted (`repeated_hour_minutes`); wall-clock text is always
read as the first pass (`times.text.read_times`).

Several sensors of one channel are merged minute by minute. Where more than one recorded (`overlaps`), heavy-tailed
channels and sleep stages take the largest value, since a phone left on the table says nothing about the watch's steps.
Other channels take the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lsm_jax.channels import channel as registered
from lsm_jax.ingest.minutes.series import MinuteValues, aggregated
from lsm_jax.ingest.people.ids import identity
from lsm_jax.ingest.reader import PersonRecord, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window, checked_window, hash_participant


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
    return minute[first], aggregated(value, first, "max" if largest else "mean")


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
