"""Keys of a mapping that have no effect beside its other keys: whoever wrote them meant something."""

from __future__ import annotations

from collections.abc import Iterator

from lsm_jax.ingest.mapping.file import MappingFile
from lsm_jax.ingest.mapping.sections import EventRule, FileRule, TableRule
from lsm_jax.ingest.mapping.times import TimeRule


def unused_keys(mapping: MappingFile) -> Iterator[str]:
    """A sentence for each key that is given and has no effect."""
    for rule in mapping.rules:
        for key, why in (*_of_section(rule), *(_of_time(rule.time) if rule.time else ())):
            yield f"{rule.section}.{key} of the mapping has no effect: {why}"


def _of_section(rule: FileRule) -> Iterator[tuple[str, str]]:
    given = rule.model_fields_set
    if rule.files.lower().endswith((".parquet", ".xlsx")):
        kind = rule.files.rpartition(".")[2]
        yield from ((key, f"a file of type {kind} says it itself") for key in ("separator", "header") if key in given)
    if isinstance(rule, TableRule) and rule.end and rule.period_minutes:
        yield "period_minutes", "the column of end says how long a row lasts"
    if isinstance(rule, EventRule):
        if rule.duration or rule.end:
            column = "duration" if rule.duration else "end"
            keys = ("minutes", "gap_minutes")
            yield from ((key, f"the column of {column} says how long an event lasts") for key in keys if key in given)
        if "duration_unit" in given and not rule.duration:
            yield "duration_unit", "there is no duration"


def _of_time(time: TimeRule) -> Iterator[tuple[str, str]]:
    given = time.model_fields_set
    if time.counts and "formats" in given:
        yield "time.formats", "a number of units has no format"
    if time.relative and "time_zone" in given:
        yield "time.time_zone", "relative times have no zone"
    if not time.day:
        yield from ((f"time.{key}", "there is no day") for key in ("minute", "first_day") if key in given)
    elif "unit" in given:
        yield "time.unit", "day and minute have units of their own"
