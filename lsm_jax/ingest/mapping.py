"""The mapping file of the table reader: what the columns of somebody's export mean.

TOML with any number of `[[tables]]` (minute values), `[[events]]` and `[[labels]]`; every key is described in
docs/ingest.md, and `configs/ingest/` holds worked examples. `readers.mapping_file` reads it into these rules.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

from lsm_jax.ingest.parse import ISO_FORMATS
from lsm_jax.ingest.sampling import Aggregate

EVENT_KINDS = ("activity", "sleep", "mood", "meal", "session")
RELATIVE_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
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
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A validity rule `column operator literal`. An empty cell only passes `!=`."""

    column: str
    operator: str
    literal: float | bool | str


@dataclasses.dataclass(frozen=True)
class PersonRule:
    """Where the person's id stands: a column, or the first group of a pattern searched in the file's path."""

    column: str = ""
    pattern: str = ""


@dataclasses.dataclass(frozen=True)
class TimeRule:
    """When a row was recorded.

    Absolute: `column` with spellings `formats`, wall-clock time in `time_zone` ("" leaves it to the command line)
    unless the text carries an offset. Relative: `column` counts `unit`s from the midnight of day 0, or `day` and
    `minute` columns count from `first_day`; day 0 is put on the Monday 2001-01-01, or, where a `weekday` column
    (0 is Monday) tells it, on the day of that week with the right weekday; `weekday_day` is the column of day
    numbers that the weekday belongs to.
    """

    column: str = ""
    formats: tuple[str, ...] = ISO_FORMATS
    time_zone: str = ""
    unit: str = ""
    day: str = ""
    minute: str = ""
    first_day: int = 0
    weekday: str = ""
    weekday_day: str = ""

    @property
    def relative(self) -> bool:
        return bool(self.unit or self.day)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.column, self.day, self.minute, self.weekday, self.weekday_day)))


@dataclasses.dataclass(frozen=True)
class ChannelRule:
    """One channel of a table: `column` of a wide table or rows of `signal` of a long one; value * scale + offset."""

    channel: str
    column: str
    signal: str
    keep: tuple[Condition, ...]
    scale: float
    offset: float
    aggregate: Aggregate


@dataclasses.dataclass(frozen=True)
class FileRule:
    """What every section has: which files (a glob), whose, when, how written; `where` names it in errors."""

    where: str
    files: str
    person: PersonRule
    separator: str | None
    decimal: str


@dataclasses.dataclass(frozen=True)
class TableRule(FileRule):
    """Minute values. `sensor` is a column that tells devices apart; else each file is one sensor."""

    time: TimeRule
    channels: tuple[ChannelRule, ...]
    keep: tuple[Condition, ...]
    period_minutes: int
    signal: str
    sensor: str

    @property
    def columns(self) -> tuple[str, ...]:
        rules = (*self.keep, *(condition for rule in self.channels for condition in rule.keep))
        named = [self.person.column, *self.time.columns, self.signal, self.sensor]
        named += [rule.column for rule in self.channels] + [condition.column for condition in rules]
        return tuple(dict.fromkeys(filter(None, named)))


@dataclasses.dataclass(frozen=True)
class EventRule(FileRule):
    """Events of one kind. They last `minutes`, or until the time in column `end`."""

    time: TimeRule
    kind: str
    name: str
    name_column: str
    minutes: int
    end: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.person.column, *self.time.columns, self.name_column, self.end))))


@dataclasses.dataclass(frozen=True)
class LabelRule(FileRule):
    """Labels of people: label name -> column."""

    labels: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.person.column, *(column for _, column in self.labels)))))


@dataclasses.dataclass(frozen=True)
class Mapping:
    tables: tuple[TableRule, ...]
    events: tuple[EventRule, ...]
    labels: tuple[LabelRule, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.channel for table in self.tables for rule in table.channels))

    @property
    def relative(self) -> bool:
        return self.tables[0].time.relative
