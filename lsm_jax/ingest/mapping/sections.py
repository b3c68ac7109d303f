"""The sections of a mapping file: tables of minute values, events and labels."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import nearest
from lsm_jax.ingest.mapping.conditions import Condition, RuleFault, parse_condition
from lsm_jax.ingest.mapping.times import TimeRule, Unit, ZoneRule
from lsm_jax.ingest.minutes.series import Aggregate
from lsm_jax.ingest.people.rules import PersonRule
from lsm_jax.ingest.section import Section, mistake
from lsm_jax.ingest.units import CONVERSIONS


def _condition(text: Any) -> Condition:
    try:
        return parse_condition(str(text))
    except RuleFault as fault:
        raise mistake(f"is {text!r}: {fault}") from None


Conditions = list[Annotated[Condition, pydantic.PlainValidator(_condition)]]


class ChannelRule(Section):
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
            raise mistake("is 0, which would make all values equal")
        return scale

    @property
    def signals(self) -> list[str]:
        return [self.signal] if isinstance(self.signal, str) else self.signal

    def to_registry_unit(self, channel: str) -> tuple[float, float]:
        """(scale, offset) from the column's values to the unit of the registry."""
        scale, offset = CONVERSIONS.get((self.unit, REGISTRY[channel].unit), (1.0, 0.0))
        return scale * self.scale, offset + scale * self.offset


class FileRule(Section):
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
            raise mistake(f"is {self.thousands!r}, which is the decimal mark: give decimal as well", "thousands")
        return self

    @property
    def section(self) -> str:
        """The section's name in messages, such as "tables[0]"."""
        return self._section

    @pydantic.field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        if separator and (len(separator) > 1 or not separator.isascii() or separator in '"\r\n'):
            raise mistake(f"is {separator!r}, must be one character such as ';'")
        return separator or None


class TimedRule(FileRule):
    """A section whose rows have a time."""

    time: TimeRule

    @pydantic.model_validator(mode="after")
    def _check_weekday(self) -> TimedRule:
        if self.time.weekday and self.person.columns:
            raise mistake("needs files of one person each", "time.weekday")
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
                raise mistake(f"has {spelling!r}, which names no hour: column = ['Date', 'Time'] joins", "time.formats")
        if bool(self.signal) != bool(self.value):
            raise mistake("and value go together: the columns of a long table", "signal")
        needed, unused = ("signal", "column") if self.value else ("column", "signal")
        for name, rule in self.channels.items():
            key = f"channels.{name}"
            if name not in REGISTRY:
                raise mistake(f"is no channel of the registry.{nearest(name, REGISTRY)}", key)
            if not getattr(rule, needed) or getattr(rule, unused):
                raise mistake(f"takes the key {needed!r} and not {unused!r}", key)
            target = REGISTRY[name].unit
            units = [source for source, converted in CONVERSIONS if converted == target] + [target]
            if rule.unit and rule.unit not in units:
                raise mistake(
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
        return unique(*named, *(rule.column for rule in rules), *compared)

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
            raise mistake("needs name_column, the column of the codes", "names")
        if self.duration and self.end:
            raise mistake("and end exclude each other", "duration")
        return self

    @property
    def content(self) -> str:
        return f"{self.kind} events"

    @property
    def used_columns(self) -> tuple[str, ...]:
        compared = (column for condition in self.keep for column in condition.columns)
        return unique(*self.person.columns, *self.time.columns, self.name_column, self.duration, self.end, *compared)

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
            raise mistake("lacks the key 'columns'")
        return self

    @property
    def content(self) -> str:
        return f"labels {', '.join(self.columns) or 'of time zones'}"

    @property
    def used_columns(self) -> tuple[str, ...]:
        zone = self.time_zone.column if self.time_zone else ""
        times = self.time.columns if self.time else ()
        return unique(*self.person.columns, *times, *self.columns.values(), zone)

    def parts_with(self, column: str) -> tuple[str, ...]:
        if column in self.model_copy(update={"columns": {}}).used_columns:
            return ()
        return tuple(name for name, used in self.columns.items() if used == column)


Rule = TableRule | EventRule | LabelRule


def unique(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, names)))
