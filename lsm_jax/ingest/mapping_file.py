"""Parsing mapping files: every mistake is answered with the key and its line."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError, nearest
from lsm_jax.ingest.mapping import (
    CONVERSIONS,
    EVENT_KINDS,
    RELATIVE_UNITS,
    ChannelRule,
    Condition,
    EventRule,
    LabelRule,
    Mapping,
    PersonRule,
    TableRule,
    TimeRule,
)
from lsm_jax.ingest.parse import ISO_FORMATS, checked_zone
from lsm_jax.ingest.sampling import AGGREGATES


def load_mapping(path: Path) -> Mapping:
    """Reads and checks a mapping file.

    Raises:
      UserError: not TOML, an unknown key, channel, unit or format, naming key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"mapping {path} cannot be read: {error}") from None
    root = _Section(path, text, "mapping", content)
    mapping = Mapping(
        tuple(_table(section) for section in root.sections("tables")),
        tuple(_event(section) for section in root.sections("events")),
        tuple(_label(section) for section in root.sections("labels")),
    )
    root.done()
    if not mapping.tables:
        raise UserError(f"mapping {path} has no [[tables]] section, so no minute values: add one.")
    timed: tuple[TableRule | EventRule, ...] = (*mapping.tables, *mapping.events)
    for rule in timed:
        if rule.time.weekday and rule.person.column:
            raise UserError(f"mapping {path}: {rule.where}.time.weekday needs files of one person each.")
    if len({rule.time.relative for rule in timed}) > 1:
        raise UserError(f"mapping {path} mixes relative and absolute times; there is no telling how they join.")
    return mapping


class _Section:
    """A table of the TOML file that knows its lines; `take` its keys, then `done` refuses what is left."""

    def __init__(self, path: Path, text: str, name: str, content: dict[str, Any], start: int = 0) -> None:
        self.path, self.text, self.name = path, text, name
        self._left = dict(content)
        self._start = start
        self._known: list[str] = []

    def sections(self, key: str) -> Iterable[_Section]:
        self._known.append(key)
        entries = self._left.pop(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.error(key, f"write it as [[{key}]]")
        heads = [match.start() for match in re.finditer(rf"^\s*\[\[\s*{key}\s*\]\]", self.text, re.MULTILINE)]
        for index, entry in enumerate(entries):
            start = heads[index] if index < len(heads) else 0
            yield _Section(self.path, self.text, f"{key}[{index}]", entry, start)

    def child(self, key: str) -> _Section:
        place = self._place(key)
        content = self.take(key, dict)
        return _Section(self.path, self.text, f"{self.name}.{key}", content, place)

    def names(self) -> list[str]:
        return list(self._left)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self._known.append(key)
        if key not in self._left:
            if default is None:
                if meant := difflib.get_close_matches(key, self._left, n=1):
                    raise self.error(meant[0], f"is no key of a mapping. Did you mean {key!r}?")
                raise UserError(f"{self.path}:{self._line(self._start)}: {self.name} lacks the key {key!r}.")
            return default
        value = self._left.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(key, f"is {value!r}, expected {' or '.join(each.__name__ for each in kinds)}")
        return value

    def error(self, key: str, what: str) -> UserError:
        end = "" if what.endswith("?") else "."
        return UserError(f"{self.path}:{self._line(self._place(key))}: {self.name}.{key} {what}{end}")

    def done(self) -> None:
        for key in self._left:
            raise self.error(key, f"is no key of a mapping.{nearest(key, self._known)} Keys: {', '.join(self._known)}")

    def _place(self, key: str) -> int:
        found = re.compile(rf"(?<![\w.-])[\"']?{re.escape(key)}[\"']?\s*(=|\]|\.)").search(self.text, self._start)
        return found.start() if found else self._start

    def _line(self, place: int) -> int:
        return self.text.count("\n", 0, place + len(self.text[place:]) - len(self.text[place:].lstrip())) + 1


def _file_rule(section: _Section) -> dict[str, Any]:
    person = section.child("person")
    rule = PersonRule(person.take("column", str, ""), person.take("file", str, ""))
    person.done()
    if bool(rule.column) == bool(rule.pattern):
        raise section.error("person", "takes either column = '...' or file = 'pattern with one group'")
    if rule.pattern:
        _checked_pattern(section, rule.pattern)
    decimal = section.take("decimal", str, ".")
    if decimal not in (".", ","):
        raise section.error("decimal", "must be '.' or ','")
    separator = section.take("separator", str, "") or None
    if separator and (len(separator) > 1 or not separator.isascii() or separator in '"\r\n'):
        raise section.error("separator", f"is {separator!r}, must be one character such as ';'")
    return {
        "where": section.name,
        "files": section.take("files", str),
        "person": rule,
        "separator": separator,
        "decimal": decimal,
    }


def _checked_pattern(section: _Section, pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise section.error("person", f"has a pattern that is no regular expression ({error})") from None
    if groups != 1:
        raise section.error("person", f"needs a pattern with exactly one group around the id, got {pattern!r}")


def _time(section: _Section) -> TimeRule:
    time = section.child("time")
    rule = TimeRule(
        column=time.take("column", str, ""),
        formats=tuple(time.take("formats", list, list(ISO_FORMATS))),
        time_zone=time.take("time_zone", str, ""),
        unit=time.take("unit", str, ""),
        day=time.take("day", str, ""),
        minute=time.take("minute", str, ""),
        first_day=time.take("first_day", int, 0),
        weekday=time.take("weekday", str, ""),
        weekday_day=time.take("weekday_day", str, ""),
    )
    time.done()
    if bool(rule.column) == bool(rule.day and rule.minute):
        raise section.error("time", "takes either column = '...' or both day = '...' and minute = '...'")
    if rule.unit and rule.unit not in RELATIVE_UNITS:
        raise time.error("unit", f"is {rule.unit!r}; units of relative time are {', '.join(RELATIVE_UNITS)}")
    if bool(rule.weekday) != bool(rule.weekday_day):
        raise section.error("time", "takes weekday and weekday_day together")
    if rule.time_zone:
        checked_zone(rule.time_zone, f"{section.path}: {section.name}.time")
    return rule


def _table(section: _Section) -> TableRule:
    signal = section.take("signal", str, "")
    value = section.take("value", str, "")
    if bool(signal) != bool(value):
        raise section.error("signal", "and value go together: the columns of a long table")
    period = section.take("period_minutes", int, 1)
    if not 1 <= period <= 1440:
        raise section.error("period_minutes", f"is {period}, must be 1 to 1440")
    channels = section.child("channels")
    names = channels.names()
    rule = TableRule(
        **_file_rule(section),
        time=_time(section),
        channels=tuple(_channel(channels, name, value) for name in names),
        keep=_conditions(section),
        period_minutes=period,
        signal=signal,
        sensor=section.take("sensor", str, ""),
    )
    section.done()
    return rule


def _channel(channels: _Section, name: str, value_column: str) -> ChannelRule:
    if name not in REGISTRY:
        raise channels.error(name, f"is no channel of the registry.{nearest(name, REGISTRY)}")
    section = channels.child(name)
    aggregate = section.take("aggregate", str, "mean")
    if aggregate not in AGGREGATES:
        raise section.error("aggregate", f"is {aggregate!r}; choose of {', '.join(AGGREGATES)}")
    scale, offset = _conversion(section, REGISTRY[name].unit)
    rule = ChannelRule(
        channel=name,
        column=value_column or section.take("column", str),
        signal=section.take("signal", str) if value_column else "",
        keep=_conditions(section),
        scale=scale * section.take("scale", (int, float), 1),
        offset=offset + scale * section.take("offset", (int, float), 0),
        aggregate=aggregate,
    )
    section.done()
    return rule


def _conversion(section: _Section, registered: str) -> tuple[float, float]:
    given = section.take("unit", str, registered)
    if given == registered:
        return 1.0, 0.0
    if (given, registered) not in CONVERSIONS:
        units = [source for source, target in CONVERSIONS if target == registered] + [registered]
        raise section.error("unit", f"is {given!r}; known here: {', '.join(units)} (else say scale and offset)")
    return CONVERSIONS[given, registered]


def _conditions(section: _Section) -> tuple[Condition, ...]:
    conditions = []
    for text in section.take("keep", list, []):
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*", str(text))
        if not match:
            raise section.error("keep", f"holds {text!r}, expected a rule such as 'Quality >= 0.8'")
        column, sign, literal = match.groups()
        conditions.append(Condition(column.strip("`"), sign, _literal(literal)))
    return tuple(conditions)


def _literal(text: str) -> float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _event(section: _Section) -> EventRule:
    kind = section.take("kind", str)
    if kind not in EVENT_KINDS:
        raise section.error("kind", f"is {kind!r}; kinds are {', '.join(EVENT_KINDS)}")
    rule = EventRule(
        **_file_rule(section),
        time=_time(section),
        kind=kind,
        name=section.take("name", str, kind),
        name_column=section.take("name_column", str, ""),
        minutes=section.take("minutes", int, 1),
        end=section.take("end", str, ""),
    )
    section.done()
    return rule


def _label(section: _Section) -> LabelRule:
    columns = section.child("columns")
    rule = LabelRule(**_file_rule(section), labels=tuple((name, columns.take(name, str)) for name in columns.names()))
    section.done()
    return rule
