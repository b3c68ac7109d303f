"""Converts text to times, vectorised. A cell that cannot be converted becomes null."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from lsm_jax.ingest.cells import numbers
from lsm_jax.ingest.times.clock import FLOATING, MAX_OFFSET, fixed_offset

ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M%#z",
    "%Y-%m-%dT%H:%M%#z",
)
# The spelling of typed instants with an offset that is no IANA zone, which polars has no type for (`tables.parquet`).
FIXED_OFFSET_FORMAT = "@%Y-%m-%dT%H:%M:%S%.f%#z"
_OFFSET_FIELD = "%(:{0,3}|#)z"
# A time outside these years comes from a broken clock or a misread format, and would cost a bogus day window.
FIRST_SECOND = int(dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp())
LAST_SECOND = int(dt.datetime(2100, 1, 1, tzinfo=dt.UTC).timestamp())

# How halves of the day are written where it is not AM and PM: with dots, blanks, or in other languages.
_AM_WORDS = (
    r"a\s?\.?\s?m\b\.?|上午|午前|오전|ص|π\.?\s?μ\.?|पूर्वाह्न|öö|de\.|fm\b|ق\.?\s?ظ\.?|ก่อนเที่ยง|пр\.?\s?об\.?|"
    r"\bsa\b|\bap\.|vm\.|לפנה[״\"]צ"
)
_PM_WORDS = (
    r"p\s?\.?\s?m\b\.?|下午|午後|오후|م|μ\.?\s?μ\.?|अपराह्न|ös|du\.|em\b|ب\.?\s?ظ\.?|หลังเที่ยง|сл\.?\s?об\.?|"
    r"\bch\b|\bip\.|nm\.|אחה[״\"]צ"
)

UNREADABLE = "time is not readable"
IMPOSSIBLE_DATE = "date before 1990 or after 2099"
SKIPPED_HOUR = "time does not exist: the clock skipped it (start of summer time)"


def format_fault(spelling: str) -> str:
    """What is wrong with a time format, as the end of a sentence; "" for a good one."""
    if spelling in ("unix_s", "unix_ms"):
        return ""
    if re.search("%[-_0]?[Il]", spelling) and not re.search("%[Pp]", spelling):
        return "has hours up to 12 (%I) and lacks %p, which tells morning from afternoon"
    try:
        pl.Series([""]).str.to_datetime(spelling, strict=False)
    except pl.exceptions.PolarsError as error:
        return f"is no strptime format ({str(error).splitlines()[0]})"
    return ""


class Times(NamedTuple):
    """The times of rows."""

    second: pl.Series  # Float64, since the Unix epoch, UTC, to the millisecond; null for bad times
    reason: pl.Series  # String; null for good times
    clock: pl.Series  # String: what each row says of its clock (see `times.clock`)


def epoch_seconds(cells: pl.Series, formats: Sequence[str], time_zone: str) -> tuple[pl.Series, pl.Series]:
    """(seconds since the Unix epoch, reasons where there are none), as `read_times` gives them."""
    times = read_times(cells, formats, time_zone)
    return times.second, times.reason


def read_times(cells: pl.Series, formats: Sequence[str], zone: str) -> Times:
    """Reads times.

    Each format is tried on the cells that the formats before it could not read, so formats may mix in a file.
    A time without offset is wall-clock time in `zone`: an IANA name, an offset such as "+05:30", or "" where none is
    known; it is then read as UTC. In the hour that the clock repeats (end of summer time) it is read as the first pass.
    The formats "unix_s" and "unix_ms" read numbers.
    """
    second = pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
    clock = pl.repeat(None, len(cells), dtype=pl.String, eager=True)
    is_read = pl.repeat(False, len(cells), dtype=pl.Boolean, eager=True)
    if cells.dtype == pl.String and cells.str.starts_with(FIXED_OFFSET_FORMAT[0]).any():
        formats = (FIXED_OFFSET_FORMAT, *formats)
    for spelling in formats if cells.dtype == pl.String or cells.dtype.is_numeric() else ("typed",):
        if is_read.all():
            break
        seconds, matches, clocks = _read_format(cells, spelling, zone)
        second, clock = second.zip_with(is_read, seconds), clock.zip_with(is_read, clocks)
        is_read = is_read | matches
    reasons = pl.select(
        pl.when(~is_read)
        .then(pl.lit(UNREADABLE))
        .when(second.is_null())
        .then(pl.lit(SKIPPED_HOUR))
        .when(~second.is_between(FIRST_SECOND, LAST_SECOND, closed="left"))
        .then(pl.lit(IMPOSSIBLE_DATE))
    ).to_series()
    return Times(second.zip_with(reasons.is_null(), pl.Series([None], dtype=pl.Float64)), reasons, clock)


def _read_format(cells: pl.Series, spelling: str, zone: str) -> tuple[pl.Series, pl.Series, pl.Series]:
    """(Float64 UTC seconds, whether each cell is of this format, the clock that it names)."""
    clock = pl.repeat(zone or None, len(cells), dtype=pl.String, eager=True)
    if spelling in ("unix_s", "unix_ms"):
        stamps = (numbers(cells) / (1 if spelling == "unix_s" else 1000)).round(3)
        stamps = stamps.zip_with(stamps.abs() < 1e15, pl.Series([None], dtype=pl.Float64))
        return stamps, stamps.is_not_null(), clock
    if spelling == "typed" and cells.dtype in (pl.Date, pl.Datetime):
        moments = cells.cast(pl.Datetime("us"), strict=False) if cells.dtype == pl.Date else cells
        written = getattr(moments.dtype, "time_zone", None)
        if not zone and written not in (None, "UTC"):
            clock = clock.fill_null(written)
    elif cells.dtype != pl.String:
        nothing = pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
        return nothing, nothing.is_not_null(), clock
    else:
        text = cells.str.replace_all("\u202f|\u00a0", " ").str.strip_chars()
        if "%p" in spelling or "%P" in spelling:
            text = text.str.replace(f"(?i){_AM_WORDS}", "AM").str.replace(f"(?i){_PM_WORDS}", "PM")
        if re.search(_OFFSET_FIELD, spelling):
            spelling = re.sub(_OFFSET_FIELD, "%#z", spelling)  # any spelling of an offset
            text = text.str.replace(r"(UTC|GMT)\s*$", "Z").str.replace(r"(UTC|GMT)\s*([+-]\d)", "$2")
            if not zone:
                clock = _written_offset(text, r"\s*$" if spelling.endswith("%#z") else r"\s")
        moments = text.str.to_datetime(spelling, time_unit="us", strict=False, ambiguous="earliest")
    if getattr(moments.dtype, "time_zone", None) is not None:
        return moments.dt.epoch("ms") / 1000, moments.is_not_null(), clock
    fixed = fixed_offset(zone)
    local = moments.dt.replace_time_zone(
        "UTC" if fixed is not None else zone or "UTC", ambiguous="earliest", non_existent="null"
    )
    clock = clock if zone else pl.repeat(FLOATING, len(cells), dtype=pl.String, eager=True)
    return local.dt.epoch("ms") / 1000 - 60 * (fixed or 0), moments.is_not_null(), clock


def _written_offset(text: pl.Series, after: str) -> pl.Series:
    """The offset in each time, such as "+05:30"; null for Z, which names no place."""
    parts = text.str.extract_groups(rf"[\d\s]([+-])(\d\d):?(\d\d)?{after}").struct.unnest()
    written = pl.format("{}{}:{}", "1", "2", pl.col("3").fill_null("00"))
    return parts.select(pl.when(pl.col("2").cast(pl.Int64) <= MAX_OFFSET // 60).then(written)).to_series()
