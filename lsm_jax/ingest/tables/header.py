"""The header of a table: names of its columns, their separator, and the line it stands in."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from lsm_jax.ingest.cells import unique_names
from lsm_jax.ingest.files.opening import open_file
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.tables.parquet import parquet_names
from lsm_jax.ingest.tables.workbook import read_sheet

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
_SEPARATORS = ",;\t|"
_MAX_PREAMBLE_LINES = 200


@dataclasses.dataclass(frozen=True)
class Header:
    """The header line of a table. Formats are recognised by it."""

    names: tuple[str, ...]  # stripped; a repeated name gets "#2", "#3", ...
    separator: str = ""  # of text
    line: int = 1  # its number; 0 for text without a header, whose columns are "1", "2", ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is known of a text file before it is read."""

    separator: str | None = None  # None: found in the header line
    header: bool = True  # without one, columns are named by position
    columns: tuple[str, ...] = ()  # the header is the first of the lines that have the most of them
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what a column may be called -> its name


def read_header(file: SourceFile, layout: Layout | None = None) -> Header:
    """Reads only the header.

    Raises:
      UnreadableFile: not a table, empty, damaged, or of an encoding that is not UTF-8.
    """
    name = file.name.lower()
    if name.endswith(".parquet"):
        return Header(parquet_names(file))
    if name.endswith(".xlsx"):
        return _sheet_header(read_sheet(file).cells, layout or Layout())
    with open_file(file) as stream:
        return _text_header(stream.read(file.limits.line_bytes), layout or Layout())


def _sheet_header(cells: pl.DataFrame, layout: Layout) -> Header:
    if not layout.header:
        return Header(_positions(cells.width), line=0)
    rows = [[cell or "" for cell in row] for row in cells.head(_MAX_PREAMBLE_LINES).iter_rows()]
    line = _header_place(rows, layout)
    return Header(_names(rows[line - 1], layout), line=line)


def _positions(count: int) -> tuple[str, ...]:
    return tuple(str(place + 1) for place in range(count))


def _names(cells: Iterable[str], layout: Layout) -> tuple[str, ...]:
    return unique_names(layout.aliases.get(cell.strip(), cell) for cell in cells)


def _header_place(lines: Iterable[Sequence[str]], layout: Layout) -> int:
    """The number of the first of the lines that have the most of the layout's columns; 1 where none has any."""
    number, most = 1, 0
    for place, cells in enumerate(lines if layout.columns else (), 1):
        found = len({*layout.columns} & {*_names(cells, layout)})
        if found > most:
            number, most = place, found
    return number


def _text_header(start: bytes, layout: Layout) -> Header:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFile("UTF-16 text: save it again as UTF-8")
    lines = start.removeprefix(b"\xef\xbb\xbf").split(b"\n", _MAX_PREAMBLE_LINES)[:_MAX_PREAMBLE_LINES]
    texts = [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
    if not layout.header:
        header = _header_line(next(filter(str.strip, texts), ""), layout.separator, _SEPARATORS + " ")
        return Header(_positions(len(header.names)), header.separator, line=0)
    number = _header_place(
        (split_line(text, layout.separator or _likely_separator(text, _SEPARATORS)) for text in texts), layout
    )
    header = _header_line(texts[number - 1], layout.separator)
    names = _names(split_line(texts[number - 1], header.separator), layout)
    return dataclasses.replace(header, names=names, line=number)


def _likely_separator(line: str, separators: str) -> str:
    """The most frequent one; a blank only where no other occurs."""
    return max(separators, key=lambda mark: line.count(mark) if mark != " " else min(line.count(mark), 0.5))


def _header_line(line: str, separator: str | None, separators: str = _SEPARATORS) -> Header:
    if not line.strip():
        raise UnreadableFile("empty: there is no header line")
    if "\0" in line:
        raise UnreadableFile("not a text file")
    separator = separator or _likely_separator(line, separators)
    cells = split_line(line, separator)
    if not cells:
        raise UnreadableFile(
            "line 1 is no header line: are its line ends those of an old Mac? Save it again as CSV (UTF-8)"
        )
    return Header(unique_names(cells), separator)


def split_line(line: str, separator: str) -> list[str]:
    """The cells of one line; empty if it cannot be parsed (a bare carriage return, a cell above 128 KiB)."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def header_names(file: SourceFile) -> tuple[str, ...]:
    """The column names of a table; none where the header cannot be read."""
    try:
        return read_header(file).names
    except UnreadableFile:
        return ()
