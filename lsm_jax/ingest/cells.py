"""Cells of tables: numbers, and reasons why rows are set aside. A cell that cannot be converted becomes null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import polars as pl

from lsm_jax.ingest.report import IngestReport

# Columns of blocks of rows.
LINE = "__line__"  # its number in the file, 1-based
PERSON = "__person__"  # the raw id


def unique_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of columns, stripped; a repeated one gets "#2", "#3", ..."""
    count: Counter[str] = Counter()
    unique = []
    for name in map(str.strip, names):
        count[name] += 1
        unique.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return tuple(unique)


def joined(block: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """The column, or the text of several with blanks between; null where one of them is."""
    if len(columns) == 1:
        return block[columns[0]]
    texts = [pl.col(name).cast(pl.String).str.strip_chars() for name in columns]
    return block.select(pl.concat_str(texts, separator=" ")).to_series()


def numbers(cells: pl.Series) -> pl.Series:
    """Float64; null where a cell is empty or not a number. Text may have blanks around and a decimal point."""
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    return cells.cast(pl.Float64, strict=False)


def is_empty(cells: pl.Series) -> pl.Series:
    """Whether each cell is empty, which is missing data and not damage."""
    if cells.dtype == pl.String:
        return cells.is_null() | cells.str.strip_chars().is_in(["", "NA", "NaN", "nan", "null", "None", "-"])
    return cells.is_null() | (cells.is_nan() if cells.dtype.is_float() else False)


def add_reason(reasons: pl.Series, is_bad: pl.Series, text: str) -> pl.Series:
    """Sets the reason of bad rows that have none yet."""
    return reasons.zip_with(reasons.is_not_null() | ~is_bad, pl.Series([text]))


def quarantine_rows(lines: pl.Series, reasons: pl.Series, file: str, report: IngestReport) -> pl.Series:
    """Quarantines the rows that have a reason and counts the others as kept. Returns which rows are kept."""
    bad = pl.DataFrame({"line": lines, "reason": reasons}).drop_nulls("reason")
    for (reason,), group in bad.group_by("reason", maintain_order=True):
        report.quarantine(str(reason), file, group["line"].to_list())
    report.rows_kept += reasons.null_count()
    return reasons.is_null()
