"""Which sections of a mapping a file is for, and its rows for each of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.described.columns import missing_columns
from lsm_jax.ingest.described.dates import DateOrders, has_both_orders
from lsm_jax.ingest.described.numerals import plain_numbers
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import Limits, SourceFile, UnreadableFile
from lsm_jax.ingest.mapping.sections import FileRule, LabelRule, Rule
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Layout, read_header
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.orders import DateOrder

AnyRule = TypeVar("AnyRule", bound=FileRule)


class Sections:
    """The sections of a mapping, which know their files.

    Args:
      aliases: what a column may be called -> its name.
      date_order: of dates that do not tell whether day or month comes first.
    """

    def __init__(self, rules: Sequence[Rule], aliases: Mapping[str, str], date_order: DateOrder | None) -> None:
        self.rules = rules
        self._aliases = aliases
        self._dates = DateOrders(date_order)
        self._of_file: dict[SourceFile, list[int]] = {}

    @property
    def leaves_date_order_open(self) -> bool:
        """Whether a section leaves it to its files whether day or month comes first."""
        return any(map(has_both_orders, self.rules))

    def of_file(self, file: SourceFile) -> list[tuple[int, Rule]]:
        """The sections for a file, with their places in the mapping."""
        if file not in self._of_file:  # which sections are for it takes reading its start once for each
            matching = [(index, rule) for index, rule in enumerate(self.rules) if _matches(file, rule)]
            self._of_file[file] = [
                index for index, rule in matching if not rule.optional or self._has_columns(file, rule)
            ]
        return [(index, self.rules[index]) for index in self._of_file[file]]

    def check(self, files: Sequence[SourceFile], source: Path, mapping: Path | None) -> None:
        """UserError where a section that is not optional has no file of the source."""
        for rule in self.rules:
            if not rule.optional and not any(_matches(file, rule) for file in files):
                raise UserError(
                    f"{mapping}: {rule.section}.files = {rule.files!r} matches none of the {len(files)} "
                    f"files of {source}. Patterns are relative to the source folder."
                )

    def look_at_dates(self, source: Path, limits: Limits) -> None:
        """Finds the order of day and month in all files of the sections that leave it to them."""
        if self.leaves_date_order_open:
            for file in source_files(source, IngestReport(), limits):
                for _, rule in self.of_file(file):
                    self._dates.look(file, rule, self._layout(rule))

    def blocks(self, file: SourceFile, rule: AnyRule, report: IngestReport) -> Iterator[tuple[AnyRule, pl.DataFrame]]:
        """The rule's columns of a file, block by block, and the rule with the file's time formats.

        A column that the file lacks costs its channel or label, and is empty; one without which no row can be read
        costs the file. UserError as by `DateOrders.formats` and `plain_numbers`.
        """
        layout = self._layout(rule)
        try:
            missing = missing_columns(file.label, rule, read_header(file, layout), report)
            rule = _with_zone(file, rule)
            if rule.time and not rule.time.counts:
                formats = self._dates.formats(file, rule, layout)
                rule = rule.model_copy(update={"time": rule.time.model_copy(update={"formats": formats})})
            report.use(file.label, f"{rule.section}: {rule.content}")
            for block in read_rows(file, rule.used_columns, report, layout):
                block = plain_numbers(block, rule, file.label, report)
                yield rule, block.with_columns(pl.lit(None, pl.String).alias(column) for column in missing)
        except UnreadableFile as error:
            report.set_aside(file.label, str(error))

    def _has_columns(self, file: SourceFile, rule: FileRule) -> bool:
        try:
            return {*rule.used_columns} <= {*read_header(file, self._layout(rule)).names}
        except UnreadableFile:
            return False

    def _layout(self, rule: FileRule) -> Layout:
        return Layout(rule.separator, rule.header, rule.used_columns, self._aliases)


def _with_zone(file: SourceFile, rule: AnyRule) -> AnyRule:
    """The rule with the time zones that the file's path says."""
    if rule.time and rule.time.time_zone:
        time = rule.time.model_copy(update={"time_zone": rule.time.time_zone.of_file(file.label)})
        rule = rule.model_copy(update={"time": time})
    if isinstance(rule, LabelRule) and rule.time_zone:
        rule = rule.model_copy(update={"time_zone": rule.time_zone.of_file(file.label)})
    return rule


def _matches(file: SourceFile, rule: FileRule) -> bool:
    """Whether the rule's glob matches. The members of a zip count as files in the zip's folder."""
    path = file.path if not file.member else str(Path(file.path).parent / file.member)
    return fnmatch.fnmatchcase(path, rule.files)
