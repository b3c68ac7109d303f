"""The mapping file of the table reader: what the columns of an export mean.

A mapping is TOML with any number of `[[tables]]` (minute values), `[[events]]` and `[[labels]]`.
docs/reference/ingest.md describes every key; configs/ingest/ has worked examples.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import pydantic
from pydantic_core import ErrorDetails

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError, nearest
from lsm_jax.ingest.clock import ZONES, zone_name
from lsm_jax.ingest.conditions import Condition, RuleFault, parse_condition
from lsm_jax.ingest.days import Aggregate
from lsm_jax.ingest.files import UnreadableFile
from lsm_jax.ingest.parse import ISO_FORMATS, Times, format_fault, read_times
from lsm_jax.ingest.person import DEFAULT_PEOPLE, PeopleRule, PersonRule
from lsm_jax.ingest.section import Section as _Section
from lsm_jax.ingest.section import mistake as _mistake

Unit = Literal["seconds", "minutes", "hours", "days"]
UNIT_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
# (given unit, registry unit) -> (scale, offset)
CONVERSIONS = {
    ("mg/dL", "mmol/L"): (1 / 18.0156, 0.0),
    ("deg F", "deg C"): (5 / 9, -160 / 9),
    ("K", "deg C"): (1.0, -273.15),
    ("s", "ms"): (1000.0, 0.0),
    ("percent", "fraction"): (0.01, 0.0),
    ("fraction", "percent"): (100.0, 0.0),
    ("kJ/min", "kcal/min"): (1 / 4.184, 0.0),
    ("km/min", "m/min"): (1000.0, 0.0),
    ("Hz", "bpm"): (60.0, 0.0),
}


def _condition(text: Any) -> Condition:
    try:
        return parse_condition(str(text))
    except RuleFault as fault:
        raise _mistake(f"is {text!r}: {fault}") from None


Conditions = list[Annotated[Condition, pydantic.PlainValidator(_condition)]]


class ZoneRule(_Section):
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
                raise _mistake(f"is {zone!r}, expected an IANA name such as 'Europe/Berlin'", key)
        if [self.name, self.column, self.file].count("") != 2:
            raise _mistake("takes an IANA name, or column = '...', or file = 'pattern with one group'")
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
        raise _mistake(f"has a pattern that is no regular expression ({error})") from None
    if groups != 1:
        raise _mistake(f"needs a pattern with exactly one group, got {pattern!r}")


class TimeRule(_Section):
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
            raise _mistake("takes either column = '...' or both day = '...' and minute = '...'")
        if bool(self.weekday) != bool(self.weekday_day):
            raise _mistake("takes weekday and weekday_day together")
        is_time = re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?", self.zero)
        if self.zero and not (self.unit and (is_time or self.zero_moment("").second[0] is not None)):
            raise _mistake(
                f"is {self.zero!r}, expected the time of day that 0 of a unit means: '22:30', or '2024-03-04 22:30'",
                "zero",
            )
        if self.unit and not self.relative and (self.weekday or (self.time_zone and self.time_zone.column)):
            raise _mistake("has a date, so neither a weekday nor a column of time zones goes with it", "zero")
        for spelling in self.formats:
            if fault := format_fault(spelling):
                raise _mistake(f"has {spelling!r}, which {fault}", "formats")
            if "%Z" in spelling and not self.time_zone:
                raise _mistake(f"has {spelling!r}: the letters of %Z name no zone, give time_zone", "formats")
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


class ChannelRule(_Section):
    """One channel of a table: a `column` of a wide table, or the rows of `signal` (one or several) in a long one.

    `text_values` are words that stand for a number, such as the "Low" of a glucose meter.
    """

    column: str = ""
    signal: str | list[str] = ""
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0
    text_values: dict[str, float] = {}
    keep: Conditions = []
    aggregate: Aggregate | None = None

    @pydantic.field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float) -> float:
        if not scale:
            raise _mistake("is 0, which would make all values equal")
        return scale

    @property
    def signals(self) -> list[str]:
        return [self.signal] if isinstance(self.signal, str) else self.signal

    def to_registry_unit(self, channel: str) -> tuple[float, float]:
        """(scale, offset) from the column's values to the unit of the registry."""
        scale, offset = CONVERSIONS.get((self.unit, REGISTRY[channel].unit), (1.0, 0.0))
        return scale * self.scale, offset + scale * self.offset


class FileRule(_Section):
    """The keys that every section has: a glob of files, whose they are, and how they are written.

    Without a `header` line columns are named by position: "1", "2" and so on. Files that lack a column of an `optional`
    section are not of that section; otherwise they are set aside.
    """

    files: str
    person: PersonRule
    optional: bool = False
    header: bool = True
    separator: str | None = None
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    time: TimeRule | None = None
    _section: str = pydantic.PrivateAttr("")

    @property
    def content(self) -> str:
        """What the section reads, in words."""
        raise NotImplementedError

    @property
    def used_columns(self) -> tuple[str, ...]:
        """The columns that the section names."""
        raise NotImplementedError

    def parts_with(self, column: str) -> tuple[str, ...]:  # noqa: ARG002
        """The channels or labels that need a column; none where no row can be read without it."""
        return ()

    @property
    def number_columns(self) -> tuple[str, ...]:
        """The columns that are read as numbers, or may be."""
        counts = self.time is not None and self.time.counts
        dates = self.time.columns if self.time and not counts else ()
        text = {*self.person.columns, *dates, *self._text_columns(counts=counts)}
        return tuple(column for column in self.used_columns if column not in text)

    def _text_columns(self, *, counts: bool) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    @pydantic.model_validator(mode="after")
    def _check_marks(self) -> FileRule:
        if self.thousands == self.decimal:
            raise _mistake(f"is {self.thousands!r}, which is the decimal mark: give decimal as well", "thousands")
        return self

    @property
    def section(self) -> str:
        """The section's name in messages, such as "tables[0]"."""
        return self._section

    @pydantic.field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        if separator and (len(separator) > 1 or not separator.isascii() or separator in '"\r\n'):
            raise _mistake(f"is {separator!r}, must be one character such as ';'")
        return separator or None


class TimedRule(FileRule):
    """A section whose rows have a time."""

    time: TimeRule

    @pydantic.model_validator(mode="after")
    def _check_weekday(self) -> TimedRule:
        if self.time.weekday and self.person.columns:
            raise _mistake("needs files of one person each", "time.weekday")
        return self


class TableRule(TimedRule):
    """Minute values. `sensor` is a column with the device's name; without it each file is one sensor.

    A row lasts `period_minutes`, or until the time in column `end`.
    """

    channels: dict[str, ChannelRule]
    keep: Conditions = []
    period_minutes: Annotated[float, pydantic.Field(gt=0, le=1440)] | None = None
    end: str = ""
    signal: str = ""
    value: str = ""
    sensor: str = ""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TableRule:
        for spelling in () if self.time.counts else self.time.formats:
            if not spelling.startswith("unix") and not re.search("%[-_0]?[HIklTRrXcs+]", spelling):
                raise _mistake(
                    f"has {spelling!r}, which names no hour: column = ['Date', 'Time'] joins", "time.formats"
                )
        if bool(self.signal) != bool(self.value):
            raise _mistake("and value go together: the columns of a long table", "signal")
        needed, unused = ("signal", "column") if self.value else ("column", "signal")
        for name, rule in self.channels.items():
            key = f"channels.{name}"
            if name not in REGISTRY:
                raise _mistake(f"is no channel of the registry.{nearest(name, REGISTRY)}", key)
            if not getattr(rule, needed) or getattr(rule, unused):
                raise _mistake(f"takes the key {needed!r} and not {unused!r}", key)
            target = REGISTRY[name].unit
            units = [source for source, converted in CONVERSIONS if converted == target] + [target]
            if rule.unit and rule.unit not in units:
                raise _mistake(
                    f"is {rule.unit!r}; units that can be converted: {', '.join(units)} (else give scale and offset)",
                    f"{key}.unit",
                )
        return self

    @property
    def content(self) -> str:
        return ", ".join(self.channels)

    @property
    def used_columns(self) -> tuple[str, ...]:
        rules = self.channels.values()
        conditions = (*self.keep, *(condition for rule in rules for condition in rule.keep))
        named = (*self.person.columns, *self.time.columns, self.signal, self.value, self.sensor, self.end)
        compared = (column for condition in conditions for column in condition.columns)
        return _unique(*named, *(rule.column for rule in rules), *compared)

    def _text_columns(self, *, counts: bool) -> tuple[str, ...]:
        return self.signal, self.sensor, "" if counts else self.end

    def parts_with(self, column: str) -> tuple[str, ...]:
        if column in self.model_copy(update={"channels": {}}).used_columns:
            return ()
        rules = self.channels.items()
        return tuple(
            name for name, rule in rules if column in (rule.column, *(c for each in rule.keep for c in each.columns))
        )


class EventRule(TimedRule):
    """Events of one kind. They last `minutes`, or as `duration` says (a number, or h:mm:ss), or until column `end`.

    The name is `name`, or what stands in `name_column`, by the table `names` of codes. A row without a name, or with a
    code that the table lacks, is no event. Rows of a `name_column` that last `minutes` are samples of a class: those of
    one name that touch are one event. `gap_minutes` joins over gaps, and joins rows of one `name` too.
    """

    kind: Literal["activity", "sleep", "mood", "meal", "session"]
    name: str = ""
    name_column: str = ""
    names: dict[str, str] = {}
    keep: Conditions = []
    minutes: Annotated[float, pydantic.Field(ge=0, le=1440)] = 1
    gap_minutes: Annotated[float, pydantic.Field(ge=0, le=1440)] | None = None
    duration: str = ""
    duration_unit: Unit = "minutes"
    end: str = ""

    @pydantic.model_validator(mode="after")
    def _check(self) -> EventRule:
        if self.names and not self.name_column:
            raise _mistake("needs name_column, the column of the codes", "names")
        if self.duration and self.end:
            raise _mistake("and end exclude each other", "duration")
        return self

    @property
    def content(self) -> str:
        return f"{self.kind} events"

    @property
    def used_columns(self) -> tuple[str, ...]:
        compared = (column for condition in self.keep for column in condition.columns)
        return _unique(*self.person.columns, *self.time.columns, self.name_column, self.duration, self.end, *compared)

    def _text_columns(self, *, counts: bool) -> tuple[str, ...]:
        return self.name_column, "" if counts else self.end


class LabelRule(FileRule):
    """Labels; `columns` is label name -> column. With a `time` they are of the person's day, else of the person.

    `time_zone` is where the person lives: it reads their wall-clock times of no known zone, and cuts their days.
    """

    columns: dict[str, str] = {}
    time_zone: ZoneRule | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> LabelRule:
        if not self.columns and not self.time_zone:
            raise _mistake("lacks the key 'columns'")
        return self

    @property
    def content(self) -> str:
        return f"labels {', '.join(self.columns) or 'of time zones'}"

    @property
    def used_columns(self) -> tuple[str, ...]:
        zone = self.time_zone.column if self.time_zone else ""
        times = self.time.columns if self.time else ()
        return _unique(*self.person.columns, *times, *self.columns.values(), zone)

    def parts_with(self, column: str) -> tuple[str, ...]:
        if column in self.model_copy(update={"columns": {}}).used_columns:
            return ()
        return tuple(name for name, used in self.columns.items() if used == column)


Rule = TableRule | EventRule | LabelRule


class MappingFile(_Section):
    """All sections of a mapping file. `aliases` are other names of columns, such as those of other languages."""

    people: PeopleRule = DEFAULT_PEOPLE
    aliases: dict[str, str] = {}
    tables: list[TableRule] = []
    events: list[EventRule] = []
    labels: list[LabelRule] = []

    @pydantic.model_validator(mode="before")
    @classmethod
    def _give_person(cls, content: Any) -> Any:
        """Sections without a person have that of [people]."""
        people = content.get("people") if isinstance(content, dict) else None
        person = {key: value for key, value in people.items() if key != "same"} if isinstance(people, dict) else {}
        if not person:
            return content
        return content | {
            kind: [{"person": person} | section if isinstance(section, dict) else section for section in sections]
            for kind, sections in content.items()
            if kind in ("tables", "events", "labels") and isinstance(sections, list)
        }

    @property
    def times(self) -> list[TimeRule]:
        return [rule.time for rule in self.rules if rule.time]

    @property
    def rules(self) -> list[Rule]:
        return [*self.tables, *self.events, *self.labels]

    @property
    def channels(self) -> tuple[str, ...]:
        return _unique(*(name for table in self.tables for name in table.channels))

    @property
    def relative(self) -> bool:
        return any(time.relative for time in self.times)

    @property
    def one_time_zone(self) -> str:
        """The zone of everybody and everything; "" where there is none, or several."""
        rules = [time.time_zone for time in self.times] + [rule.time_zone for rule in self.labels]
        names = {rule.name for rule in rules if rule}
        return names.pop() if len(names) == 1 else ""


def load_mapping(path: Path, annotated_format: str = "") -> MappingFile:
    """Reads and checks a mapping file.

    Args:
      annotated_format: the format whose recordings get the mapping's events and labels; it then has no tables.

    Raises:
      UserError: not TOML, or an unknown key, channel, unit or format; the message names the line and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"mapping {path} cannot be read: {error}") from None
    try:
        mapping = MappingFile.model_validate(content)
    except pydantic.ValidationError as error:
        raise UserError(f"{path}:{_explain(text, error.errors()[0])}") from None
    if annotated_format and (mapping.tables or mapping.relative):
        raise UserError(
            f"mapping {path}: format {annotated_format} reads the values and their times itself. Its mapping takes "
            "[[events]] and [[labels]] with absolute times only."
        )
    if not mapping.tables and not annotated_format:
        raise UserError(f"mapping {path} has no [[tables]] section, so no minute values: add one.")
    if len({time.relative for time in mapping.times}) > 1:
        raise UserError(f"mapping {path} mixes relative and absolute times, which cannot be joined.")
    return _with_section_names(mapping)


def built_in_mapping(content: Mapping[str, Any]) -> MappingFile:
    """The mapping of a format that comes with the package."""
    return _with_section_names(MappingFile.model_validate(content))


def _with_section_names(mapping: MappingFile) -> MappingFile:
    for kind in ("tables", "events", "labels"):
        for index, rule in enumerate(getattr(mapping, kind)):
            rule._section = f"{kind}[{index}]"
    return mapping


def describes_tables(path: Path) -> bool:
    """Whether a mapping file has `[[tables]]`, which make it one of the format "table". False if it cannot be read."""
    try:
        return "tables" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False


def _unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, names)))


def _explain(text: str, error: ErrorDetails) -> str:
    """One validation error as "LINE: KEY what is wrong"."""
    keys = [*error["loc"], *filter(None, error.get("ctx", {}).get("key", "").split("."))]
    if error["type"] == "mistake":
        sentence = error["msg"]
    elif error["type"] == "missing":
        sentence = f"lacks the key {keys.pop()!r}"
    elif len(keys) == 1:
        sentence = f"is not a list of sections: write it as [[{keys[0]}]]"
    else:
        sentence = f"is {error['input']!r}, {error['msg'].replace('Input should be', 'expected')}"
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    return f"{_line(text, keys)}: {name} {sentence}{'' if sentence.endswith('?') else '.'}"


def _line(text: str, keys: list[str | int]) -> int:
    """The line of a key: its section's head, then each key in turn after the one before."""
    start = 0
    if len(keys) > 1 and isinstance(keys[1], int):
        heads = [match.start() for match in re.finditer(rf"^[ \t]*\[\[\s*{keys[0]}\s*\]\]", text, re.MULTILINE)]
        start = heads[keys[1]] if keys[1] < len(heads) else 0
        keys = keys[2:]
    for key in keys:
        found = re.compile(rf"(?<![\w-])[\"']?{re.escape(str(key))}[\"']?\s*(=|\]|\.)").search(text, start)
        start = found.start() if found else start
    return text.count("\n", 0, start) + 1
