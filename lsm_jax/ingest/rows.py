"""Reads tables (delimited text, Parquet, Excel) block by block, and sorts rows of many people by person.

Every row keeps its line number, so that a fault can be found in the file. Text is cut into lines here and not by the
parser: a stray quote or a short line costs that line and no other. Memory is one block (8 MiB of text, 2^18 rows of
Parquet); only a workbook is parsed whole.
"""

from __future__ import annotations

import csv
import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, UInt8

from lsm_jax.errors import RunError
from lsm_jax.ingest.files import MIB, SourceFile, UnreadableFile, open_file
from lsm_jax.ingest.parquet import parquet_blocks, parquet_names
from lsm_jax.ingest.parse import unique_names
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.workbook import read_sheet

BLOCK_BYTES = 8 * MIB
LINE = "__line__"
PERSON = "__person__"
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
            yield from _TextTable(file, header, columns, report).blocks()
    except UnreadableFile as error:
        report.set_aside(file.label, str(error))


def _numbered(blocks: Iterable[pl.DataFrame], first: int, report: IngestReport) -> Iterator[pl.DataFrame]:
    """Blocks with the number of each row."""
    for block in blocks:
        report.rows_read += len(block)
        yield block.insert_column(0, pl.Series(LINE, np.arange(first, first + len(block), dtype=np.int64)))
        first += len(block)


def _sheet_header(cells: pl.DataFrame, layout: Layout) -> Header:
    if not layout.header:
        return Header(_positions(cells.width), line=0)
    rows = [[cell or "" for cell in row] for row in cells.head(_MAX_PREAMBLE_LINES).iter_rows()]
    line = _header_place(rows, layout)
    return Header(_names(rows[line - 1], layout), line=line)


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


# The header, where there is one.


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


# Delimited text.


def _text_header(start: bytes, layout: Layout) -> Header:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableFile("UTF-16 text: save it again as UTF-8")
    lines = start.removeprefix(b"\xef\xbb\xbf").split(b"\n", _MAX_PREAMBLE_LINES)[:_MAX_PREAMBLE_LINES]
    texts = [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
    if not layout.header:
        header = _header_line(next(filter(str.strip, texts), ""), layout.separator, _SEPARATORS + " ")
        return Header(_positions(len(header.names)), header.separator, line=0)
    number = _header_place(
        (_split(text, layout.separator or _likely_separator(text, _SEPARATORS)) for text in texts), layout
    )
    header = _header_line(texts[number - 1], layout.separator)
    names = _names(_split(texts[number - 1], header.separator), layout)
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
    cells = _split(line, separator)
    if not cells:
        raise UnreadableFile(
            "line 1 is no header line: are its line ends those of an old Mac? Save it again as CSV (UTF-8)"
        )
    return Header(unique_names(cells), separator)


def _split(line: str, separator: str) -> list[str]:
    """The cells of one line; empty if it cannot be parsed (a bare carriage return, a cell above 128 KiB)."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


@dataclasses.dataclass(frozen=True)
class _TextTable:
    """A file of delimited text, of which some columns are read."""

    file: SourceFile
    header: Header
    columns: list[str]
    report: IngestReport

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Splits the file into blocks of whole lines and parses them; lines up to the header are dropped."""
        next_line, rest = 1, b""
        with open_file(self.file) as stream:
            while True:
                damage = None
                try:
                    piece = stream.read(BLOCK_BYTES)
                except UnreadableFile as error:
                    piece, damage = b"", error
                block = rest + piece
                if not piece and damage is None and block and not block.endswith(b"\n"):
                    block += b"\n"  # the last line
                cut = block.rfind(b"\n") + 1
                block, rest = block[:cut], block[cut:]
                while block and next_line <= self.header.line:
                    block, next_line = block.partition(b"\n")[2], next_line + 1
                if block:
                    yield self._parse(block, next_line)
                    next_line += block.count(b"\n")
                if damage is not None:
                    raise UnreadableFile(f"damaged after line {next_line - 1}, what comes before it is kept ({damage})")
                if not piece:
                    return
                if len(rest) > self.file.limits.line_bytes:
                    raise UnreadableFile(
                        f"line {next_line} is longer than {self.file.limits.line_bytes} bytes: not a table of rows"
                    )

    def _parse(self, block: bytes, first_line: int) -> pl.DataFrame:
        """Parses whole lines; those with a wrong number of fields are quarantined."""
        content = np.frombuffer(block.replace(b"\r\n", b"\n"), np.uint8)
        ends = np.flatnonzero(content == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        blank = ends == starts
        quoted = _count_per_line(content, '"', ends) > 0
        complete = _count_per_line(content, self.header.separator, ends) == len(self.header.names) - 1
        plain = ~blank & ~quoted & complete
        lines = np.arange(first_line, first_line + len(ends), dtype=np.int64)
        self.report.rows_read += int((~blank).sum())
        self._quarantine(lines[~(blank | quoted | plain)])

        frame = self._parse_plain(content if plain.all() else content[np.repeat(plain, ends + 1 - starts)])
        frame = frame.insert_column(0, pl.Series(LINE, lines[plain]))
        if not quoted.any():
            return frame
        texts = [bytes(content[starts[i] : ends[i]]).decode("utf-8", "replace") for i in np.flatnonzero(quoted)]
        return pl.concat([frame, self._parse_quoted(texts, lines[quoted])]).sort(LINE)

    def _parse_plain(self, content: UInt8[np.ndarray, " n"]) -> pl.DataFrame:
        """Parses complete lines without quotes."""
        if not len(content):
            return pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        return pl.read_csv(
            content.tobytes(),
            has_header=False,
            new_columns=list(self.header.names),
            separator=self.header.separator,
            quote_char=None,
            infer_schema=False,
            encoding="utf8-lossy",
        ).select(self.columns)

    def _parse_quoted(self, texts: list[str], lines: Int[np.ndarray, " n"]) -> pl.DataFrame:
        """Parses each line by itself, so that an unclosed quote ends with its line."""
        rows = [_split(text, self.header.separator) for text in texts]
        complete: Bool[np.ndarray, " n"] = np.array([len(row) == len(self.header.names) for row in rows])
        self._quarantine(lines[~complete])
        rows = [row for row in rows if len(row) == len(self.header.names)]
        data = {name: [row[self.header.names.index(name)] for row in rows] for name in self.columns}
        frame = pl.DataFrame(data, schema=dict.fromkeys(self.columns, pl.String))
        return frame.insert_column(0, pl.Series(LINE, lines[complete]))

    def _quarantine(self, lines: Int[np.ndarray, " n"]) -> None:
        self.report.quarantine("wrong number of fields", self.file.label, lines.tolist())


def _count_per_line(content: UInt8[np.ndarray, " n"], mark: str, ends: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """How often a character occurs in each line; `ends` holds the positions of the newlines."""
    positions = np.flatnonzero(content == ord(mark))
    return np.diff(np.searchsorted(positions, ends), prepend=0)


# Rows of many people.


class Slice(NamedTuple):
    """One person's rows in one file of `RowsByPerson`."""

    path: str
    first: int
    rows: int
    source: str  # the file in which they were found, as in reports


class RowsByPerson:
    """Sorts rows of many people by person on disk, so that one person can be read at a time.

    Each block of parsed rows is sorted by person and written as one Arrow file. An index of the slices of each person
    stays in memory. The disk holds the parsed columns once, less than the text they came from.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.slices: dict[str, list[Slice]] = {}

    def add(self, frame: pl.DataFrame, source: str = "") -> None:
        """Writes a block of the file `source`. Column `PERSON` holds the raw id; a person's rows stay in order.

        RunError where the disk takes no more.
        """
        if not len(frame):
            return
        # Any order of the people does; that of numbers is found several times faster than that of text.
        frame = frame.sort(pl.col(PERSON).cast(pl.Categorical).to_physical(), maintain_order=True)
        path = self._folder / f"{uuid.uuid4().hex}.arrow"
        try:
            frame.drop(PERSON).rechunk().write_ipc(path, compression="uncompressed")
        except OSError as error:
            raise RunError(f"rows cannot be sorted by person in {self._folder}: {error}.") from error
        offset = 0
        for person, length in frame[PERSON].rle().struct.unnest().select("value", "len").iter_rows():
            self.slices.setdefault(person, []).append(Slice(str(path), offset, length, source))
            offset += length


def load_slices(slices: Sequence[Slice]) -> pl.DataFrame:
    """The rows of these slices (at least one), in the order in which they were added."""
    return pl.concat([pl.scan_ipc(each.path).slice(each.first, each.rows) for each in slices]).collect()
