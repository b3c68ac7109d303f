"""Whether day or month comes first in dates such as 4/12/2016: what formats say, and what columns tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import polars as pl

_DATE_MARKS = ("/", ".", "-")
DateOrder = Literal["day", "month"]


def date_spelling(spelling: str) -> tuple[str, DateOrder] | None:
    """How a format writes day and month in numbers: the mark between them, and what comes first.

    None for other formats, such as those that begin with the year.
    """
    spelling = spelling.replace("%D", "%m/%d/%y")
    found = re.search(r"(?<!%[YyGC])(?<!%[YyGC]\W)%[-_0]?([dem])(\W{0,2})%[-_0]?([dem])", spelling)
    if not found or (found[1] == "m") == (found[3] == "m"):
        return None
    return found[2], "month" if found[1] == "m" else "day"


def orders_of_dates(cells: pl.Series, mark: str) -> set[DateOrder] | None:
    """Which of the two numbers of dates with this mark is above 12 somewhere in a column; None without such dates."""
    if cells.dtype != pl.String:
        return None
    written = re.escape(mark)
    # Not within 2024-03-04, nor the fraction of a second.
    before = r"\D" if mark.isspace() else rf"[^\d{written}]"
    after = written if mark == "." else f"(?:{written}|[ ,])"
    pattern = rf"(?:^|{before})(\d{{1,2}}){written}(\d{{1,2}}){after}" if mark else r"(?:^|\D)(\d\d)(\d\d)\d\d"
    fields = cells.str.extract_groups(pattern).struct.unnest().drop_nulls().unique().cast(pl.Int64)
    first, second = fields["1"], fields["2"]
    orders = set[DateOrder]()
    if (first.is_between(13, 31) & second.is_between(1, 12)).any():
        orders.add("day")
    if (second.is_between(13, 31) & first.is_between(1, 12)).any():
        orders.add("month")
    return orders if len(fields) else None


def date_order(blocks: Iterable[pl.Series]) -> DateOrder | None:
    """The order that dates such as 4/12/2016 tell, with any mark; None where they tell none, or both."""
    tellings = (orders_of_dates(cells, mark) or () for cells in blocks for mark in _DATE_MARKS)
    found = set[DateOrder]().union(*tellings)
    return found.pop() if len(found) == 1 else None


def starts_with_day_or_month(cells: pl.Series) -> bool:
    """Whether a column has dates such as 4/12/2016, of which `date_order` tells the order."""
    return any(orders_of_dates(cells, mark) is not None for mark in _DATE_MARKS)
