"""The mapping file of the table reader: what the columns of an export mean.

A mapping is TOML with any number of `[[tables]]` (minute values), `[[events]]` and `[[labels]]`.
docs/reference/ingest.md describes every key; configs/ingest/ has worked examples.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
from pydantic_core import ErrorDetails

from lsm_jax.errors import UserError
from lsm_jax.ingest.mapping.sections import EventRule, LabelRule, Rule, TableRule, unique
from lsm_jax.ingest.mapping.times import TimeRule
from lsm_jax.ingest.people.rules import DEFAULT_PEOPLE, PeopleRule
from lsm_jax.ingest.section import Section


class MappingFile(Section):
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
        return unique(*(name for table in self.tables for name in table.channels))

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
