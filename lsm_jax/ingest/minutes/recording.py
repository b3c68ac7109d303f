"""What the files of one person hold until it is minutes, and what is told about the person."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from lsm_jax.ingest.minutes.ranked import EVENT_TOLD_AGAIN, RankedSeries, best_events, best_of, set_aside_others
from lsm_jax.ingest.minutes.series import Aggregate, minute_series
from lsm_jax.ingest.minutes.sleep import Spell, sleep_events, sleep_series
from lsm_jax.ingest.reader import Labels, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import Clock, fixed_offset
from lsm_jax.ingest.times.text import Times
from lsm_jax.windows import MINUTES_PER_DAY


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


LABEL_TOLD_BETTER = "label of a day for which a better source tells it"


class _DayLabels(NamedTuple):
    """What a row tells of the day of a time: seconds since the epoch, UTC, or local where no zone is known."""

    second: float
    labels: Labels
    is_wall_clock: bool
    rank: int
    file: str


class _Sensor(NamedTuple):
    """Whose samples are of one stream; those of several sensors are merged."""

    channel: str
    sensor: str
    aggregate: Aggregate | None
    period_minutes: float | None


class Recording:
    """What the files of one person hold: samples by sensor, stages of sleep, events, labels of days, the clock."""

    def __init__(self) -> None:
        self.file = ""  # the one that is being read, as in the report
        self.rows_kept = Counter[str]()  # by file, as the report has counted them
        self._events: list[tuple[int, RecordEvent, str]] = []  # rank, event, file
        self.finished: list[Series] = []  # minute values as they are
        self.ranked: list[RankedSeries] = []  # minute values of which the best source of a channel is taken
        self.born, self.sex = "", ""  # as `labels_about` takes them
        self.time_zone = ""  # of the wearer, where the files say it
        self.is_wall_clock = False  # the files have wall-clock times, of which no zone is known
        self._day_labels: list[_DayLabels] = []
        self.offsets: dict[int, int] = {}  # minute since the epoch, UTC -> minutes of local minus UTC, from there on
        # (seconds, values, lengths) of each sensor
        self._samples: dict[_Sensor, tuple[list[float], list[float], list[float]]] = defaultdict(lambda: ([], [], []))
        self._spells: list[Spell] = []

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
        self._spells.extend(spells)

    def add_event(self, event: RecordEvent, rank: int = 0) -> None:
        """Adds an event that a row tells; `rank` is that of its source, 0 is the best."""
        self._events.append((rank, event, self.file))

    def add_day_labels(self, second: float, labels: Labels, *, is_wall_clock: bool = False, rank: int = 0) -> None:
        """Adds labels of the day of a time: seconds since the epoch, UTC or (a wall clock of no known zone) local.

        Args:
          rank: of their source, 0 is the best. Of a day's values of one label those of the best source are used.
        """
        self._day_labels.append(_DayLabels(second, labels, is_wall_clock, rank, self.file))

    def add_clocks(self, times: Times) -> None:
        """Notes the offsets that times, in any order, are written with: where they change, and once for each day.

        The day's note corrects what a change in another block, of earlier or later times, would say of this one.
        """
        table = pl.DataFrame({"second": times.second, "clock": times.clock}).drop_nulls()
        table = table.sort("second", maintain_order=True).with_columns(day=pl.col("second") // 86400)
        is_new = pl.any_horizontal((pl.col(name) != pl.col(name).shift()).fill_null(True) for name in ("clock", "day"))
        for second, clock in table.filter(is_new).select("second", "clock").iter_rows():
            if (offset := fixed_offset(clock)) is not None:
                self.offsets[int(second // 60)] = offset

    def day_labels(self, clock: Clock, report: IngestReport) -> tuple[tuple[int, Labels], ...]:
        """(minute since the epoch, UTC; labels), with times of a wall clock placed on this one.

        Rows of which a better source tells each label are set aside.
        """
        told = self._day_labels
        second = np.array([each.second for each in told], np.float64)
        placed = np.where([each.is_wall_clock for each in told], clock.utc_seconds(second), second)
        minutes = (placed // 60).astype(np.int64)
        days = (clock.wall_minutes(minutes) // MINUTES_PER_DAY).tolist()
        best: dict[tuple[int, str], int] = {}
        for day, each in zip(days, told, strict=True):
            for name in each.labels:
                best[day, name] = min(each.rank, best.get((day, name), each.rank))
        used, others = list[tuple[int, Labels]](), Counter[str]()
        for minute, day, each in zip(minutes.tolist(), days, told, strict=True):
            if labels := {name: value for name, value in each.labels.items() if best[day, name] == each.rank}:
                used.append((minute, labels))
            elif each.labels:
                others[each.file] += 1
        for file, rows in others.items():
            report.unkeep(LABEL_TOLD_BETTER, file, rows=rows)
        return tuple(used)

    def series(self, report: IngestReport) -> tuple[Series, ...]:
        """Minute values of every channel and sensor."""
        made = []
        for sensor, samples in self._samples.items():
            second, value, length = (np.array(column, np.float64) for column in samples)
            row = pl.DataFrame({"value": value, "length": length}).hash_rows().cast(pl.Int64, wrap_numerical=True)
            series = minute_series(
                sensor.channel,
                second,
                value,
                report,
                period_minutes=sensor.period_minutes,
                length=length,
                aggregate=sensor.aggregate,
                row=row.to_numpy(),
            )
            made.append(series)
        if repeated := len(self._spells) - len({*self._spells}):
            report.duplicates["stages of sleep"] += repeated
        by_channel: dict[str, list[RankedSeries]] = defaultdict(list)
        for each in self.ranked:
            by_channel[each.series.channel].append(each)
        best = (best_of(sources, report) for sources in by_channel.values())
        return (*made, *best, *sleep_series(self.sleep()), *self.finished)

    def sleep(self) -> list[Spell]:
        """Stages of sleep in order of time."""
        return sorted({*self._spells})

    def all_events(self, report: IngestReport) -> tuple[RecordEvent, ...]:
        """Sleep and what else was logged, in order of time. Rows that tell an event again are set aside."""
        logged = best_events((rank, event) for rank, event, _ in self._events)
        told = sorted(self._events, key=lambda each: each[0])
        set_aside_others(((event, file) for _, event, file in told), logged, EVENT_TOLD_AGAIN, report)
        return tuple(sorted((*logged, *sleep_events(self.sleep())), key=lambda event: (event.start, event.end)))
