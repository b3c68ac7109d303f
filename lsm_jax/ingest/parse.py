"""Converts cells to numbers and times, vectorised. A cell that cannot be converted becomes null."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl

from lsm_jax.ingest.report import IngestReport

ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
)
# A time outside these years comes from a broken clock or a misread format, and would cost a bogus day window.
FIRST_SECOND = int(dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp())
LAST_SECOND = int(dt.datetime(2100, 1, 1, tzinfo=dt.UTC).timestamp())

# How halves of the day are written where it is not AM and PM: with dots, blanks, or in other languages.
_AM_WORDS = r"a\s?\.?\s?m\b\.?|上午|午前|오전|ص|π\.?\s?μ\.?|पूर्वाह्न|öö|de\.|fm\b"
_PM_WORDS = r"p\s?\.?\s?m\b\.?|下午|午後|오후|م|μ\.?\s?μ\.?|अपराह्न|ös|du\.|em\b"
_DATE_START = r"^\s*(\d{1,2})\D(\d{1,2})\D"
DateOrder = Literal["day", "month"]

UNREADABLE = "time is not readable"
IMPOSSIBLE_DATE = "date before 1990 or after 2099"
SKIPPED_HOUR = "time does not exist: the clock skipped it (start of summer time)"


def numbers(cells: pl.Series) -> pl.Series:
    """Float64; null where a cell is empty or not a number. Text may have blanks around and a decimal point."""
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    return cells.cast(pl.Float64, strict=False)


def is_empty(cells: pl.Series) -> pl.Series:
    """Whether each cell is empty, which is missing data and not damage."""
    if cells.dtype == pl.String:
        return cells.is_null() | cells.str.strip_chars().is_in(["", "NA", "NaN", "nan", "null", "None", "-"])
    return cells.is_null() | (cells.is_nan() if cells.dtype.is_float() else False)


def add_reason(reasons: pl.Series, is_bad: pl.Series, text: str) -> pl.Series:
    """Sets the reason of bad rows that have none yet."""
    return reasons.zip_with(reasons.is_not_null() | ~is_bad, pl.Series([text]))


def quarantine_rows(lines: pl.Series, reasons: pl.Series, file: str, report: IngestReport) -> pl.Series:
    """Quarantines the rows that have a reason and counts the others as kept. Returns which rows are kept."""
    bad = pl.DataFrame({"line": lines, "reason": reasons}).drop_nulls("reason")
    for (reason,), group in bad.group_by("reason", maintain_order=True):
        report.quarantine(str(reason), file, group["line"].to_list())
    report.rows_kept += reasons.null_count()
    return reasons.is_null()


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


def format_order(spelling: str) -> DateOrder | None:
    """Whether a format starts with the day or with the month of a date in numbers; None for other formats."""
    fields = re.findall("%[-_0]?([A-Za-z])", spelling.replace("%D", "%m/%d/%y"))[:2]
    return {"dm": "day", "em": "day", "md": "month", "me": "month"}.get("".join(fields))  # type: ignore[return-value]


def date_order(blocks: Iterable[pl.Series]) -> DateOrder | None:
    """Which field of dates such as 4/12/2016 is above 12 somewhere in a column; None where neither or both are."""
    found: set[DateOrder] = set()
    for cells in blocks:
        if cells.dtype == pl.String:
            fields = cells.str.extract_groups(_DATE_START).struct.unnest().drop_nulls().cast(pl.Int64).unique()
            first, second = fields["1"], fields["2"]
            if (first.is_between(13, 31) & second.is_between(1, 12)).any():
                found.add("day")
            if (second.is_between(13, 31) & first.is_between(1, 12)).any():
                found.add("month")
    return found.pop() if len(found) == 1 else None


def starts_with_day_or_month(cells: pl.Series) -> bool:
    """Whether a column has dates such as 4/12/2016, of which `date_order` tells the order."""
    return cells.dtype == pl.String and bool(cells.str.contains(_DATE_START).any())


def epoch_seconds(cells: pl.Series, formats: Sequence[str], time_zone: str) -> tuple[pl.Series, pl.Series]:
    """Times as seconds since the Unix epoch, UTC.

    Each format is tried on the cells that the formats before it could not read, so formats may mix in a file.
    A time without offset is wall-clock time in `time_zone`. In the hour that the clock repeats (end of summer time) it
    is read as the first pass. The formats "unix_s" and "unix_ms" read numbers.

    Returns:
      (Float64 seconds to the millisecond, null for bad times; String reason, null for good times).
    """
    seconds = pl.Series("seconds", [None] * len(cells), dtype=pl.Float64)
    is_read = pl.Series("is_read", [False] * len(cells), dtype=pl.Boolean)
    for spelling in formats if cells.dtype == pl.String or cells.dtype.is_numeric() else ("typed",):
        if is_read.all():
            break
        candidates, matches = _read_format(cells, spelling, time_zone)
        seconds = seconds.zip_with(is_read, candidates)
        is_read = is_read | matches
    reasons = pl.select(
        pl.when(~is_read)
        .then(pl.lit(UNREADABLE))
        .when(seconds.is_null())
        .then(pl.lit(SKIPPED_HOUR))
        .when(~seconds.is_between(FIRST_SECOND, LAST_SECOND, closed="left"))
        .then(pl.lit(IMPOSSIBLE_DATE))
    ).to_series()
    return seconds.zip_with(reasons.is_null(), pl.Series([None], dtype=pl.Float64)), reasons


def _read_format(cells: pl.Series, spelling: str, time_zone: str) -> tuple[pl.Series, pl.Series]:
    """(Float64 UTC seconds, whether each cell is of this format)."""
    if spelling in ("unix_s", "unix_ms"):
        stamps = (numbers(cells) / (1 if spelling == "unix_s" else 1000)).round(3)
        stamps = stamps.zip_with(stamps.abs() < 1e15, pl.Series([None], dtype=pl.Float64))
        return stamps, stamps.is_not_null()
    if spelling == "typed" and cells.dtype in (pl.Date, pl.Datetime):
        moments = cells.cast(pl.Datetime("us"), strict=False) if cells.dtype == pl.Date else cells
    elif cells.dtype != pl.String:
        return pl.Series([None] * len(cells), dtype=pl.Float64), pl.Series([False] * len(cells), dtype=pl.Boolean)
    else:
        text = cells.str.replace_all("\u202f|\u00a0", " ").str.strip_chars()
        if "%p" in spelling or "%P" in spelling:
            text = text.str.replace(f"(?i){_AM_WORDS}", "AM").str.replace(f"(?i){_PM_WORDS}", "PM")
        moments = text.str.to_datetime(spelling, time_unit="us", strict=False, ambiguous="earliest")
    instants = moments
    if getattr(moments.dtype, "time_zone", None) is None:
        instants = moments.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    return instants.dt.epoch("ms") / 1000, moments.is_not_null()
