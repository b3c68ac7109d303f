"""Whether the day or the month comes first in the dates of a section's files, decided over whole columns.

A number above 12 tells it. A file that has none follows the other files of its section.
"""

from __future__ import annotations

import contextlib
import dataclasses

from lsm_jax.errors import UserError
from lsm_jax.ingest.cells import joined
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.mapping.sections import FileRule
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Layout
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.orders import DateOrder, date_spelling, orders_of_dates

Orders = set[DateOrder]


@dataclasses.dataclass
class DateOrders:
    """The orders that the files of a source tell. It fills while files are looked at."""

    stated: DateOrder | None  # the user's word, for files that do not tell
    found: dict[tuple[str, str], dict[str, Orders]] = dataclasses.field(default_factory=dict)  # (section, file) -> mark

    def look(self, file: SourceFile, rule: FileRule, layout: Layout) -> None:
        """Reads the dates of a file whose section has formats of both orders."""
        if has_both_orders(rule):
            with contextlib.suppress(UnreadableFile):
                self._of_file(file, rule, layout)

    def formats(self, file: SourceFile, rule: FileRule, layout: Layout) -> list[str]:
        """The section's time formats that are right for a file.

        Raises:
          UserError: the dates contradict the formats, or tell no order where the formats have both.
          UnreadableFile: see `tables.header.read_header`.
        """
        assert rule.time is not None
        allowed = _orders(rule)
        found = self._of_file(file, rule, layout) if allowed else {}
        chosen = {mark: self._choose(file, rule, mark, allowed[mark], orders) for mark, orders in found.items()}
        spellings = [(spelling, date_spelling(spelling)) for spelling in rule.time.formats]
        return [spelling for spelling, date in spellings if date is None or chosen.get(date[0], date[1]) == date[1]]

    def _choose(self, file: SourceFile, rule: FileRule, mark: str, allowed: Orders, found: Orders) -> DateOrder:
        """The order of a file's dates with this mark."""
        assert rule.time is not None
        where = f"{file.label}: the dates in column {' and '.join(map(repr, rule.time.time_columns))}"
        formats = f"{rule.section}.time.formats"
        if len(found) == 1 and not found <= allowed:
            raise UserError(
                f"{where} start with the {min(found)}, and {formats} are {', '.join(map(repr, rule.time.formats))}. "
                "Keep only the formats that are right for this file."
            )
        others = Orders().union(*(each.get(mark, ()) for (name, _), each in self.found.items() if name == rule.section))
        stated = {self.stated} if self.stated else Orders()
        for orders in (allowed, found, others, stated):
            if len(orders) == 1:
                return min(orders)
        fact = "start with the day and with the month" if found else "do not tell whether day or month comes first"
        raise UserError(
            f"{where} {fact}, and {formats} have both. Keep the formats of one order, or say it with --date-order day "
            "or --date-order month."
        )

    def _of_file(self, file: SourceFile, rule: FileRule, layout: Layout) -> dict[str, Orders]:
        """For each mark of the section's formats that the file's dates have, the orders that they tell."""
        key = rule.section, file.label
        if key not in self.found:
            assert rule.time is not None
            columns, marks = rule.time.time_columns, _orders(rule)
            found: dict[str, Orders] = {}
            for block in read_rows(file, columns, IngestReport(), layout):
                if not {*columns} <= {*block.columns}:
                    break  # the file is set aside when it is read
                cells = joined(block, columns)
                for mark in marks:
                    if (orders := orders_of_dates(cells, mark)) is not None:
                        found.setdefault(mark, set()).update(orders)
            self.found[key] = found
        return self.found[key]


def has_both_orders(rule: FileRule) -> bool:
    """Whether the section leaves it to the files whether the day or the month comes first."""
    return any(len(orders) > 1 for orders in _orders(rule).values())


def _orders(rule: FileRule) -> dict[str, Orders]:
    """The orders that the section's formats have for each mark between day and month."""
    orders: dict[str, Orders] = {}
    if rule.time and not rule.time.counts:
        for mark, order in filter(None, map(date_spelling, rule.time.formats)):
            orders.setdefault(mark, set()).add(order)
    return orders
