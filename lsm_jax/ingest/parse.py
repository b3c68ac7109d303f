"""Cells to numbers and times: vectorised, and null where a cell is not what it should be."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence

import polars as pl

from lsm_jax.errors import UserError

ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
)
# Devices of this kind did not exist before, and exports do not reach into the far future: a time outside
# is a broken clock or a misread spelling, and would cost a bogus day window.
FIRST_SECOND = int(dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp())
LAST_SECOND = int(dt.datetime(2100, 1, 1, tzinfo=dt.UTC).timestamp())

UNREADABLE = "time is not readable"
IMPOSSIBLE_DATE = "date before 1990 or after 2099"
SKIPPED_HOUR = "time does not exist: the clock skipped it (start of summer time)"


def numbers(cells: pl.Series) -> pl.Series:
    """Float64; null where a cell is empty or no number. Text may have blanks around and a decimal point."""
    if cells.dtype == pl.String:
        return cells.str.strip_chars().cast(pl.Float64, strict=False)
    return cells.cast(pl.Float64, strict=False)


def is_empty(cells: pl.Series) -> pl.Series:
    """True where there is nothing in the cell: missing, which is no damage."""
    if cells.dtype == pl.String:
        return cells.is_null() | cells.str.strip_chars().is_in(["", "NA", "NaN", "nan", "null", "None", "-"])
    return cells.is_null() | (cells.is_nan() if cells.dtype.is_float() else False)


def checked_zone(name: str, where: str) -> str:
    """The IANA name itself, known to exist.

    Raises:
      UserError: no such time zone; `where` says who asked.
    """
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"{where}: unknown time zone {name!r}. Use an IANA name such as 'Europe/Berlin'.") from None
    return name


def epoch_seconds(cells: pl.Series, formats: Sequence[str], time_zone: str) -> tuple[pl.Series, pl.Series]:
    """Times to seconds since the Unix epoch, UTC.

    Each spelling of `formats` is tried on what the ones before did not read, so spellings may mix in a file.
    A time without offset is wall-clock time in `time_zone`; in the hour that the clock repeats (end of summer
    time) it is taken as the first pass. "unix_s" and "unix_ms" read numbers.

    Returns:
      (Float64 seconds to the millisecond, null where there is a reason; String reason, null where the time is good).
    """
    seconds = pl.Series("seconds", [None] * len(cells), dtype=pl.Float64)
    readable = pl.Series("readable", [False] * len(cells), dtype=pl.Boolean)
    for spelling in formats if cells.dtype == pl.String or cells.dtype.is_numeric() else ("typed",):
        if readable.all():
            break
        instants, read = _read_spelling(cells, spelling, time_zone)
        seconds = seconds.zip_with(readable, instants)
        readable = readable | read
    reason = pl.select(
        pl.when(~readable)
        .then(pl.lit(UNREADABLE))
        .when(seconds.is_null())
        .then(pl.lit(SKIPPED_HOUR))
        .when(~seconds.is_between(FIRST_SECOND, LAST_SECOND, closed="left"))
        .then(pl.lit(IMPOSSIBLE_DATE))
    ).to_series()
    return seconds.zip_with(reason.is_null(), pl.Series([None], dtype=pl.Float64)), reason


def _read_spelling(cells: pl.Series, spelling: str, time_zone: str) -> tuple[pl.Series, pl.Series]:
    """(Float64 UTC seconds, whether the cell is of this spelling)."""
    if spelling in ("unix_s", "unix_ms"):
        stamp = (numbers(cells) / (1 if spelling == "unix_s" else 1000)).round(3)
        stamp = stamp.zip_with(stamp.abs() < 1e15, pl.Series([None], dtype=pl.Float64))
        return stamp, stamp.is_not_null()
    if spelling == "typed" and cells.dtype in (pl.Date, pl.Datetime):
        moments = cells.cast(pl.Datetime("us"), strict=False) if cells.dtype == pl.Date else cells
    elif cells.dtype != pl.String:
        return pl.Series([None] * len(cells), dtype=pl.Float64), pl.Series([False] * len(cells), dtype=pl.Boolean)
    else:
        moments = cells.str.strip_chars().str.to_datetime(spelling, time_unit="us", strict=False, ambiguous="earliest")
    if getattr(moments.dtype, "time_zone", None) is None:
        instants = moments.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    else:
        instants = moments
    return instants.dt.epoch("ms") / 1000, moments.is_not_null()
