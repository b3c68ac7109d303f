"""When the rows of a table were recorded, and in which time zone: keys of a mapping."""

from __future__ import annotations

import re
from typing import Any, Literal

import polars as pl
import pydantic

from lsm_jax.ingest.files.source import UnreadableFile
from lsm_jax.ingest.section import Section, mistake
from lsm_jax.ingest.times.clock import ZONES, zone_name
from lsm_jax.ingest.times.text import ISO_FORMATS, Times, format_fault, read_times

Unit = Literal["seconds", "minutes", "hours", "days"]
UNIT_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


class ZoneRule(Section):
    """A time zone: its IANA `name`, which a text alone is, or where each row or file says it.

    That is a column, or the first group of a pattern that is searched in the file's path. It says an IANA name, an
    offset, or a key of `zones`, such as a site.
    """

    name: str = ""
    column: str = ""
    file: str = ""
    zones: dict[str, str] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, content: Any) -> Any:
        return {"name": content} if isinstance(content, str) else content

    @pydantic.model_validator(mode="after")
    def _check(self) -> ZoneRule:
        for key, zone in (("", self.name), *((f"zones.{place}", zone) for place, zone in self.zones.items())):
            if zone not in {*ZONES, ""}:
                raise mistake(f"is {zone!r}, expected an IANA name such as 'Europe/Berlin'", key)
        if [self.name, self.column, self.file].count("") != 2:
            raise mistake("takes an IANA name, or column = '...', or file = 'pattern with one group'")
        if self.file:
            _check_pattern(self.file)
        return self

    def of_file(self, path: str) -> ZoneRule:
        """The rule for a file: where the path says the zone, its name.

        Raises:
          UnreadableFile: the path does not say it.
        """
        if not self.file:
            return self
        match = re.search(self.file, path)
        name = self.zone(match.group(1) or "") if match else None
        if name is None:
            raise UnreadableFile(f"time_zone.file = {self.file!r} finds no time zone in its path, or none of its zones")
        return self.model_copy(update={"name": name, "file": ""})

    def zone(self, text: str) -> str | None:
        """The zone that a cell or a part of a path means; None for neither."""
        return self.zones.get(text.strip()) or zone_name(text)

    def zones_of(self, cells: pl.Series) -> pl.Series:
        """The zone of each row: "" for an empty cell, null for one that means none."""
        text = cells.cast(pl.String).fill_null("").str.strip_chars()
        known = {cell: self.zone(cell) if cell else "" for cell in text.unique()}
        return text.replace_strict(known, default=None, return_dtype=pl.String)


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise mistake(f"has a pattern that is no regular expression ({error})") from None
    if groups != 1:
        raise mistake(f"needs a pattern with exactly one group, got {pattern!r}")


class TimeRule(Section):
    """When a row was recorded.

    Absolute: `column` (or several, joined by a blank) in one of `formats`, wall-clock time in `time_zone` (None: the
    command line's or the person's) unless the text has an offset. Relative: `column` counts `unit`s from the midnight
    of day 0, or the columns `day` and `minute` count from `first_day`. With `zero` it counts from that time of day 0
    and may be negative; with a date in `zero`, times are absolute. Day 0 is Monday 2001-01-01, or, where a `weekday`
    column (0 is Monday) is given, the day of that week with the right weekday; `weekday_day` is the column of day
    numbers that the weekday belongs to.
    """

    column: str | list[str] = ""
    formats: list[str] = list(ISO_FORMATS)
    time_zone: ZoneRule | None = None
    unit: Unit | None = None
    zero: str = ""
    day: str = ""
    minute: str = ""
    first_day: int = 0
    weekday: str = ""
    weekday_day: str = ""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TimeRule:
        if bool(self.column) == bool(self.day and self.minute):
            raise mistake("takes either column = '...' or both day = '...' and minute = '...'")
        if bool(self.weekday) != bool(self.weekday_day):
            raise mistake("takes weekday and weekday_day together")
        is_time = re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?", self.zero)
        if self.zero and not (self.unit and (is_time or self.zero_moment("").second[0] is not None)):
            raise mistake(
                f"is {self.zero!r}, expected the time of day that 0 of a unit means: '22:30', or '2024-03-04 22:30'",
                "zero",
            )
        if self.unit and not self.relative and (self.weekday or (self.time_zone and self.time_zone.column)):
            raise mistake("has a date, so neither a weekday nor a column of time zones goes with it", "zero")
        for spelling in self.formats:
            if fault := format_fault(spelling):
                raise mistake(f"has {spelling!r}, which {fault}", "formats")
            if "%Z" in spelling and not self.time_zone:
                raise mistake(f"has {spelling!r}: the letters of %Z name no zone, give time_zone", "formats")
        return self

    @property
    def counts(self) -> bool:
        """Whether the columns hold a number of units, and no text with a date."""
        return bool(self.unit or self.day)

    @property
    def relative(self) -> bool:
        """Whether the date is not known."""
        return self.counts and "-" not in self.zero

    def zero_moment(self, zone: str) -> Times:
        """`zero` with a date, as the times of one row."""
        return read_times(pl.Series([self.zero]), ISO_FORMATS, zone)

    @property
    def time_columns(self) -> list[str]:
        """The columns that `column` names."""
        return [self.column] if isinstance(self.column, str) else self.column

    @property
    def zero_seconds(self) -> int:
        """`zero` as seconds since midnight."""
        hour, minute, second = [*map(int, self.zero.split(":")), 0][:3] if self.zero else (0, 0, 0)
        return hour * 3600 + minute * 60 + second

    @property
    def columns(self) -> tuple[str, ...]:
        zone = self.time_zone.column if self.time_zone else ""
        return *self.time_columns, self.day, self.minute, self.weekday, self.weekday_day, zone
