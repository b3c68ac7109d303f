"""The wall clock of a person: a time zone, or the offsets from UTC that the recording itself carries.

Rows of tables say on which clock they were written by a name: an IANA zone, an offset such as "+05:30", or `FLOATING`
for wall-clock text of which no zone is known. Floating times are read as UTC and placed (`Clock.utc_seconds`) once the
person's clock is known. Null means an instant whose row says nothing of the place.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import re
import zoneinfo
from collections.abc import Mapping

import numpy as np
import polars as pl
from jaxtyping import Float, Int

FLOATING = "floating"
CLOCK = "clock"  # the column of these names
# polars knows all zones but two, which are none.
ZONES = frozenset(zoneinfo.available_timezones() - {"Factory", "localtime"})
MAX_CHANGES_A_DAY = 4
MAX_OFFSET = 14 * 60  # minutes
Offsets = tuple[tuple[int, int], ...]  # (minute since the Unix epoch, UTC; local minus UTC in minutes)


@dataclasses.dataclass(frozen=True)
class Clock:
    """A wall clock. One that knows neither zone nor offsets shows UTC."""

    time_zone: str = ""  # IANA name
    offsets: Offsets = ()  # in order; each holds until the next, the first also before. Used where no zone is known

    @property
    def is_known(self) -> bool:
        return bool(self.time_zone or self.offsets)

    def wall_minutes(self, minute: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Minutes of the wall clock since 1970-01-01 00:00 local, from minutes since the epoch, UTC."""
        if not self.is_known or self.time_zone == "UTC" or not len(minute):
            return minute
        if not self.time_zone:
            return minute + self._offsets_at(minute)
        instants = pl.from_epoch(pl.Series(minute * 60), time_unit="s").dt.replace_time_zone("UTC")
        wall = instants.dt.convert_time_zone(self.time_zone).dt.replace_time_zone(None)
        return wall.dt.epoch("s").to_numpy() // 60

    def utc_seconds(self, wall: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Seconds since the epoch, UTC, from seconds of the wall clock since 1970-01-01 00:00 local.

        In the hour that the clock repeats the first pass is meant, in one that it skips the clock before the change.
        """
        if not self.is_known or not len(wall):
            return wall
        if not self.time_zone:
            near = wall - 60 * self._offsets_at(wall / 60)
            return wall - 60 * self._offsets_at(near / 60)
        time = pl.from_epoch(pl.Series((wall * 1000).round().astype(np.int64)), time_unit="ms")

        def placed(wall: pl.Expr) -> pl.Expr:
            return wall.dt.replace_time_zone(self.time_zone, ambiguous="earliest", non_existent="null")

        hour = pl.duration(hours=1)
        instants = pl.coalesce(placed(pl.col("wall")), placed(pl.col("wall") - hour) + hour)
        table = pl.DataFrame({"wall": time}).select(instants.dt.epoch("ms") / 1000)
        return table.to_series().fill_null(pl.Series(wall)).to_numpy()

    def midnight(self, day: int) -> tuple[dt.datetime, int]:
        """(UTC instant, local minus UTC in minutes) of the first minute of a day, counted from 1970-01-01."""
        return _midnight(self, day)

    def _offsets_at(self, minute: Float[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        begin, offset = np.array(self.offsets, np.int64).T
        return offset[np.maximum(np.searchsorted(begin, minute, side="right") - 1, 0)]


def changes_of_offset(told: Mapping[int, int]) -> Offsets:
    """The offsets that a recording tells at some minutes, each from when it was first told."""
    pairs = sorted(told.items())
    return tuple(pair for before, pair in zip([(0, None), *pairs], pairs, strict=False) if before[1] != pair[1])


@functools.lru_cache(maxsize=4096)
def _midnight(clock: Clock, day: int) -> tuple[dt.datetime, int]:
    wall = dt.datetime(1970, 1, 1) + dt.timedelta(days=day)
    if clock.offsets and not clock.time_zone:
        ends = [begin for begin, _ in clock.offsets[1:]] + [None]
        offset = next(
            offset
            for (_, offset), end in zip(clock.offsets, ends, strict=True)
            if end is None or day * 1440 - offset < end
        )
        return (wall - dt.timedelta(minutes=offset)).replace(tzinfo=dt.UTC), offset
    midnight = wall.replace(tzinfo=zoneinfo.ZoneInfo(clock.time_zone or "UTC"))
    return midnight.astimezone(dt.UTC), int((midnight.utcoffset() or dt.timedelta()).total_seconds() // 60)


def zone_name(text: str) -> str | None:
    """The IANA name or offset ("+05:30") that a cell means, such as Europe/Berlin, UTC+0100, GMT-8 or -0800."""
    text = text.strip()
    if text in ZONES:
        return text
    match = re.fullmatch(r"(?:UTC|GMT)?\s*([+-])(\d{1,2}):?(\d\d)?", text)
    if not match:
        return "UTC" if text == "Z" else None
    sign, hours, minutes = match.groups(default="0")
    return f"{sign}{int(hours):02d}:{int(minutes):02d}" if int(hours) * 60 + int(minutes) <= MAX_OFFSET else None


def fixed_offset(name: str) -> int | None:
    """The minutes of an offset such as "+05:30"; None for a zone."""
    match = re.fullmatch(r"([+-])(\d\d):(\d\d)", name)
    return int(f"{match[1]}1") * (int(match[2]) * 60 + int(match[3])) if match else None


def is_floating(rows: pl.DataFrame) -> pl.Series:
    """Whether each row's time is that of a wall clock of which no zone is known."""
    if CLOCK not in rows.columns:
        return pl.repeat(False, len(rows), eager=True)
    return (rows[CLOCK].cast(pl.String) == FLOATING).fill_null(False)


def on_clock(rows: pl.DataFrame, clock: Clock) -> pl.DataFrame:
    """The rows with their floating times (columns second, start, end) placed on this clock."""
    floating = is_floating(rows)
    if not clock.is_known or not floating.any():
        return rows
    times = [name for name in ("second", "start", "end") if name in rows.columns]
    placed = [pl.Series(name, clock.utc_seconds(rows[name].fill_null(0).to_numpy())) for name in times]
    return rows.with_columns(rows[each.name].zip_with(~floating, each) for each in placed)


def clock_of(rows: pl.DataFrame) -> Clock:
    """The clock that rows agree on; where they name several, the offsets at their times (column second or start).

    "UTC" is how a device writes and no place where somebody lives: it counts where rows name nothing else. So does an
    offset of zero on a day that has another one. Where offsets alternate, the most frequent one of each day counts.
    """
    if CLOCK not in rows.columns:
        return Clock()
    second = "second" if "second" in rows.columns else "start"
    rows = rows.select(pl.col(second).alias("second"), pl.col(CLOCK).cast(pl.String)).drop_nulls()
    rows = rows.filter(pl.col(CLOCK) != FLOATING)
    names = sorted({*rows[CLOCK]} - {"UTC"})
    if not names:
        return Clock("UTC" if len(rows) else "")
    if len(names) == 1 and fixed_offset(names[0]) is None:
        return Clock(names[0])
    rows = rows.filter(pl.col(CLOCK) != "UTC").with_columns(day=pl.col("second") // 86400)
    is_zero = pl.col(CLOCK) == "+00:00"
    rows = rows.filter(~is_zero | is_zero.all().over("day"))
    parts = [group.with_columns(offset=_offsets(group["second"], str(name))) for (name,), group in rows.group_by(CLOCK)]
    table = pl.concat(parts).with_columns(minute=(pl.col("second") // 60).cast(pl.Int64)).sort("second", "offset")
    changes = _changes(table)
    if len(changes) > MAX_CHANGES_A_DAY * table["day"].n_unique():  # nobody travels so much
        often = pl.col("offset").mode().sort().first()
        changes = _changes(table.group_by("day", maintain_order=True).agg(pl.col("minute").min(), often))
    # Times in UTC are often written with +00:00, which alone is no place either.
    return Clock() if names == ["+00:00"] else Clock(offsets=tuple(changes.select("minute", "offset").iter_rows()))


def _changes(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter((pl.col("offset") != pl.col("offset").shift()).fill_null(True))


def _offsets(seconds: pl.Series, name: str) -> pl.Series:
    """Local minus UTC in minutes at these instants."""
    fixed = fixed_offset(name)
    if fixed is not None:
        return pl.repeat(fixed, len(seconds), dtype=pl.Int64, eager=True)
    minute = (seconds // 60).cast(pl.Int64).to_numpy()
    return pl.Series(Clock(name).wall_minutes(minute) - minute)
