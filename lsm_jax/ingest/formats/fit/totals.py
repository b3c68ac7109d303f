"""Running totals of FIT monitoring: steps, distance and active calories by type of activity, since midnight.

A message with `current_activity_type_intensity` speaks for all the time since the one before it: what its total rose by
was counted in that time, and of the other types nothing. Other messages say that their total rose since it was last
told. A total that falls has started again, and so has each total where monitoring starts at midnight. What a total rose
by before it was first told is not known otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lsm_jax.ingest.formats.fit.messages import Message, number
from lsm_jax.ingest.minutes.series import MAX_TOTAL_GAP_MINUTES, interval_counts
from lsm_jax.ingest.reader import Series
from lsm_jax.ingest.report import IngestReport

CHANNELS = ("steps", "distance", "active_calories")  # fields and channels
_STEPPING = ("walking", "running")


class Totals(NamedTuple):
    """What a monitoring message tells."""

    second: float
    activity: str
    totals: tuple[tuple[str, float], ...]  # (channel, total)
    speaks_for_all: bool = False
    is_midnight: bool = False  # of the local clock: all totals are 0


class TotalsLog:
    """All monitoring messages of one person, from any number of files in any order."""

    def __init__(self) -> None:
        self._by_device: dict[str, set[Totals]] = defaultdict(set)

    def add(self, device: str, second: float | None, message: Message) -> bool:
        """Adds a message, unless its time is not known. Returns whether it tells anything."""
        if isinstance(local := message.get("local_timestamp"), int):
            if second is not None and local % 86400 == 0:
                self._by_device[device].add(Totals(second, "", (), is_midnight=True))
            return True
        activity = str(message.get("activity_type", ""))
        totals = {field: total for field in CHANNELS if (total := number(message, field)) is not None}
        if activity in _STEPPING and "steps" not in totals:
            # Where the type is packed with the intensity, the field keeps its general name: a cycle is two steps.
            cycles, short = number(message, "cycles"), number(message, "cycles_16")
            if (steps := 2 * cycles if cycles is not None else short) is not None:
                totals["steps"] = steps
        speaks_for_all = "current_activity_type_intensity" in message
        if not totals and not speaks_for_all:
            return False
        if second is not None:
            self._by_device[device].add(Totals(second, activity, tuple(totals.items()), speaks_for_all))
        return True

    def series(self, report: IngestReport) -> Iterator[Series]:
        """Minute counts of each channel and device."""
        for messages in self._by_device.values():
            found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
            for channel, start, end, count in _increases(sorted(messages)):
                if 0 < end - start <= 60 * MAX_TOTAL_GAP_MINUTES:
                    found[channel].append((start, end, count))
            for channel, intervals in found.items():
                start, end, count = np.array(intervals).T
                yield interval_counts(channel, start, end, count, report)


def _increases(messages: list[Totals]) -> Iterator[tuple[str, float, float, float]]:
    """(channel, start, end, count) of messages in order of time."""
    told: dict[tuple[str, str], tuple[float, float]] = {}  # (channel, activity) -> (second, total)
    midnight: float | None = None
    before = now = messages[0].second  # of the messages that speak for all
    packed = {channel for message in messages if message.speaks_for_all for channel, _ in message.totals}
    for message in messages:
        if message.is_midnight:
            midnight = message.second
            told = {}
        if message.speaks_for_all and message.second > now:
            before, now = now, message.second
            yield from ((channel, before, now, 0.0) for channel in packed)
        for channel, total in message.totals:
            key = channel, message.activity
            since, last = told.get(key, (message.second, total) if midnight is None else (midnight, 0.0))
            told[key] = message.second, total
            start = before if message.speaks_for_all else since
            yield channel, start, message.second, total if total < last else total - last
