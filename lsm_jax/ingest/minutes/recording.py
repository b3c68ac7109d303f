"""What the files of one person hold until it is minutes, and what is told about the person."""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from lsm_jax.ingest.minutes.ranked import RankedSeries, best_of
from lsm_jax.ingest.minutes.series import Aggregate, minute_series
from lsm_jax.ingest.minutes.sleep import Spell, sleep_events, sleep_series
from lsm_jax.ingest.reader import Labels, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock, fixed_offset
from lsm_jax.ingest.times.text import Times


def labels_about(born: str, sex: str, series: Iterable[Series]) -> dict[str, float | str]:
    """Age on the first day, and sex, where they are told. The birth date itself is not kept.

    Args:
      born: a date such as 1980-06-01.
      sex: "female" or "male", in any case of letters.
    """
    labels: dict[str, float | str] = {}
    minutes = [int(each.minute.min()) for each in series if len(each.minute)]
    try:
        birth = dt.date.fromisoformat(born)
    except ValueError:
        pass
    else:
        if minutes:
            first = dt.datetime.fromtimestamp(60 * min(minutes), dt.UTC).date()
            had_birthday = (first.month, first.day) >= (birth.month, birth.day)
            labels["age"] = float(first.year - birth.year - (not had_birthday))
    if sex.upper() in ("FEMALE", "MALE"):
        labels["sex"] = sex[0].upper()
    return labels


class _Sensor(NamedTuple):
    """Whose samples are of one stream; those of several sensors are merged."""

    channel: str
    sensor: str
    aggregate: Aggregate | None
    period_minutes: float | None


class Recording:
    """What the files of one person hold: samples by sensor, stages of sleep, events, labels of days, the clock."""

    def __init__(self) -> None:
        self.events: list[RecordEvent] = []
        self.finished: list[Series] = []  # minute values as they are
        self.ranked: list[RankedSeries] = []  # minute values of which the best source of a channel is taken
        self.born, self.sex = "", ""  # as `labels_about` takes them
        self.time_zone = ""  # of the wearer, where the files say it
        self.is_wall_clock = False  # the files have wall-clock times, of which no zone is known
        self._day_labels: list[tuple[float, Labels, bool]] = []
        self.offsets: dict[int, int] = {}  # minute since the epoch, UTC -> minutes of local minus UTC, from there on
        # (seconds, values, lengths) of each sensor
        self._samples: dict[_Sensor, tuple[list[float], list[float], list[float]]] = defaultdict(lambda: ([], [], []))
        self._spells: set[Spell] = set()

    def add(
        self,
        channel: str,
        second: Sequence[float],
        value: Sequence[float],
        *,
        length: Sequence[float] = (),
        sensor: str = "",
        aggregate: Aggregate | None = None,
        period_minutes: float | None = None,
    ) -> None:
        """Adds samples of a channel, as `series.minute_series` takes them.

        Args:
          length: seconds that each lasts; empty where that is not known.
          sensor: what recorded them. Sensors of a channel are merged.
        """
        seconds, values, lengths = self._samples[_Sensor(channel, sensor, aggregate, period_minutes)]
        seconds.extend(second)
        values.extend(value)
        lengths.extend(length or (math.nan,) * len(second))

    def add_spells(self, spells: Iterable[Spell]) -> None:
        """Adds stages of sleep."""
        self._spells.update(spells)

    def add_day_labels(self, second: float, labels: Labels, *, is_wall_clock: bool = False) -> None:
        """Adds labels of the day of a time: seconds since the epoch, UTC or (a wall clock of no known zone) local."""
        self._day_labels.append((second, labels, is_wall_clock))

    def add_clocks(self, times: Times) -> None:
        """Notes the offsets that times are written with, where they change."""
        table = pl.DataFrame({"second": times.second, "clock": times.clock}).drop_nulls()
        for second, clock in table.filter((pl.col("clock") != pl.col("clock").shift()).fill_null(True)).iter_rows():
            if (offset := fixed_offset(clock)) is not None:
                self.offsets[int(second // 60)] = offset

    def day_labels(self, clock: Clock) -> tuple[tuple[int, Labels], ...]:
        """(minute since the epoch, UTC; labels), with times of a wall clock placed on this one."""
        wall = clock.utc_seconds(np.array([second for second, _, _ in self._day_labels], np.float64)).tolist()
        return tuple(
            (int((local if is_wall else second) // 60), labels)
            for local, (second, labels, is_wall) in zip(wall, self._day_labels, strict=True)
        )

    def series(self, report: IngestReport) -> tuple[Series, ...]:
        """Minute values of every channel and sensor."""
        made = []
        for sensor, samples in self._samples.items():
            second, value, length = (np.array(column, np.float64) for column in samples)
            series = minute_series(
                sensor.channel,
                second,
                value,
                report,
                period_minutes=sensor.period_minutes,
                length=length,
                aggregate=sensor.aggregate,
            )
            made.append(series)
        by_channel: dict[str, list[RankedSeries]] = defaultdict(list)
        for each in self.ranked:
            by_channel[each.series.channel].append(each)
        best = (best_of(sources, report) for sources in by_channel.values())
        return (*made, *best, *sleep_series(self.sleep()), *self.finished)

    def sleep(self) -> list[Spell]:
        """Stages of sleep in order of time."""
        return sorted(self._spells)

    def all_events(self) -> tuple[RecordEvent, ...]:
        """Sleep and what else was logged, each event once, in order of time."""
        events = dict.fromkeys((*self.events, *sleep_events(self.sleep())))
        return tuple(sorted(events, key=lambda event: (event.start, event.end)))
