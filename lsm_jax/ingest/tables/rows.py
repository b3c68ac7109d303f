"""Reads tables (delimited text, Parquet, Excel) block by block.

Every row keeps its line number, so that a fault can be found in the file. Memory is one block (8 MiB of text, 2^18 rows
of Parquet); only a workbook is parsed whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import polars as pl

from lsm_jax.ingest.cells import LINE
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Header, Layout, read_header
from lsm_jax.ingest.tables.parquet import parquet_blocks
from lsm_jax.ingest.tables.text import TextTable
from lsm_jax.ingest.tables.workbook import read_sheet


def read_rows(
    file: SourceFile, columns: Sequence[str], report: IngestReport, layout: Layout | None = None
) -> Iterator[pl.DataFrame]:
    """Blocks of the given columns, with the line number (int64, 1-based) in column `LINE`.

    Text and workbook cells are strings; Parquet cells keep their type. Lines whose number of fields differs from the
    header's are quarantined. If the file is damaged half-way, the rows before the damage are yielded and the damage is
    reported.

    Raises:
      UnreadableFile: the header cannot be read (see `read_header`).
    """
    header = read_header(file, layout)
    columns = [name for name in header.names if name in {*columns}]
    try:
        if file.name.lower().endswith(".parquet"):
            yield from _numbered(parquet_blocks(file, columns, report), 1, report)
        elif file.name.lower().endswith(".xlsx"):
            yield from _numbered(_sheet_rows(file, header, columns, report), header.line + 1, report)
        else:
            yield from TextTable(file, header, columns, report).blocks()
    except UnreadableFile as error:
        report.set_aside(file.label, str(error))


def _numbered(blocks: Iterable[pl.DataFrame], first: int, report: IngestReport) -> Iterator[pl.DataFrame]:
    """Blocks with the number of each row."""
    for block in blocks:
        report.rows_read += len(block)
        yield block.insert_column(0, pl.Series(LINE, np.arange(first, first + len(block), dtype=np.int64)))
        first += len(block)


def _sheet_rows(file: SourceFile, header: Header, columns: list[str], report: IngestReport) -> Iterator[pl.DataFrame]:
    sheet = read_sheet(file)
    if sheet.other_sheets:
        report.note(f"{file.label}: {sheet.other_sheets} further sheets were not read; save each as a file of its own.")
    if sheet.unsaved:
        report.note(
            f"{file.label}: {sheet.unsaved} cells are formulas without a saved value and were read as empty; open it "
            "in a spreadsheet program and save it."
        )
    if sheet.errors:
        report.note(f"{file.label}: {sheet.errors} cells show an error such as #N/A and were read as empty.")
    rows = sheet.cells[header.line :]
    yield rows.rename(dict(zip(rows.columns, header.names, strict=True))).select(columns)
