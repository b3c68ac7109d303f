"""Rows of a table file, a block at a time: delimited text, Parquet, Excel.

Every row keeps its line number, so that what is wrong can be found again. Text is cut into lines
here and not by the parser: a stray quote or a short line costs that line, never its neighbours.
Memory is one block (8 MiB of text, 2^18 rows of Parquet); only a workbook is parsed whole. Parquet is read from
its end, so a packed one is unpacked into the system's temporary folder (`TMPDIR`) first.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import fastexcel
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from lsm_jax.ingest.files import DAMAGE, DEFAULT_LIMITS, MIB, Limits, Refused, SourceFile, checked_workbook, opened
from lsm_jax.ingest.report import IngestReport

BLOCK_BYTES = 8 * MIB
LINE = "__line__"
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
_SEPARATORS = ",;\t|"
_WORDS = (pl.Categorical, pl.Enum, pl.Binary, pl.Null)  # Parquet's other ways of keeping text


@dataclasses.dataclass(frozen=True)
class Header:
    """First line of a table: what formats are recognised by.

    Attributes:
      names: column names, stripped; a repeated name gets "#2", "#3", ...
      separator: of text; "" for Parquet and Excel.
    """

    names: tuple[str, ...]
    separator: str = ""


def header(file: SourceFile, limits: Limits = DEFAULT_LIMITS, separator: str | None = None) -> Header:
    """Reads only the header.

    Raises:
      Refused: no table, empty, damaged, or of an encoding that is not UTF-8.
    """
    kind = file.name.lower()
    if kind.endswith(".parquet"):
        with _parquet(file, limits) as table:
            return Header(tuple(table.schema_arrow.names))
    if kind.endswith(".xlsx"):
        return Header(tuple(_workbook(file, limits)[0].columns))
    with opened(file, limits) as stream:
        try:
            start = stream.read(limits.line_bytes)
        except DAMAGE as error:
            raise Refused(f"damaged file ({error})") from error
    return _text_header(start, separator)


def rows(
    file: SourceFile,
    columns: Sequence[str],
    report: IngestReport,
    limits: Limits = DEFAULT_LIMITS,
    separator: str | None = None,
) -> Iterator[pl.DataFrame]:
    """Blocks of the wanted columns, with the line number (int64, 1-based) in column `LINE`.

    Text and workbook cells are strings; Parquet cells keep their type. Lines with another number of fields
    than the header are quarantined. A file that turns out damaged half-way is reported, and what stood before
    the damage is yielded.

    Raises:
      Refused: the header cannot be read (see `header`).
    """
    found = header(file, limits, separator)
    wanted = [name for name in found.names if name in set(columns)]
    try:
        if file.name.lower().endswith(".parquet"):
            yield from _parquet_rows(file, wanted, report, limits)
        elif file.name.lower().endswith(".xlsx"):
            sheet, others = _workbook(file, limits)
            report.rows_read += len(sheet)
            if others:
                report.note(f"{file.label}: {others} further sheets were not read; save each as a file of its own.")
            yield sheet.select(pl.int_range(2, pl.len() + 2, dtype=pl.Int64).alias(LINE), *wanted)
        else:
            yield from _text_rows(file, found, wanted, report, limits)
    except Refused as refusal:
        report.set_aside(file.label, str(refusal))


def _text_header(start: bytes, separator: str | None) -> Header:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Refused("UTF-16 text: save it again as UTF-8")
    line = start.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    if not line.strip():
        raise Refused("empty: there is no header line")
    if "\0" in line:
        raise Refused("not a text file")
    mark = separator or max(_SEPARATORS, key=line.count)
    seen: dict[str, int] = {}
    names = []
    cells = _split(line, mark)
    if not cells:
        raise Refused("line 1 is no header line: are its line ends those of an old Mac? Save it again as CSV (UTF-8)")
    for name in cells:
        bare = name.strip()
        seen[bare] = seen.get(bare, 0) + 1
        names.append(bare if seen[bare] == 1 else f"{bare}#{seen[bare]}")
    return Header(tuple(names), mark)


def _split(line: str, separator: str) -> list[str]:
    """The cells of one line; none where it cannot be parsed: a bare carriage return, a cell above 128 KiB."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def _text_rows(
    file: SourceFile, found: Header, wanted: list[str], report: IngestReport, limits: Limits
) -> Iterator[pl.DataFrame]:
    """Splits the stream into blocks of whole lines; the header line is dropped from the first."""
    next_line, carried, first = 1, b"", True
    with opened(file, limits) as stream:
        while True:
            damage = None
            try:
                piece = stream.read(BLOCK_BYTES)
            except (*DAMAGE, Refused) as error:
                piece, damage = b"", error
            block, carried = _whole_lines(carried + piece, at_end=not piece and damage is None)
            if first and block:
                block = block.partition(b"\n")[2]
                next_line, first = 2, False
            if block:
                yield _block(block, next_line, found, wanted, file.label, report)
                next_line += block.count(b"\n")
            if damage is not None:
                raise Refused(f"damaged after line {next_line - 1}, what stands before is kept ({damage})")
            if not piece:
                return
            if len(carried) > limits.line_bytes:
                raise Refused(f"line {next_line} is longer than {limits.line_bytes} bytes: not a table of rows")


def _whole_lines(content: bytes, at_end: bool) -> tuple[bytes, bytes]:
    """(complete lines, each closed by a newline; the rest)."""
    if at_end:
        return (content if content.endswith(b"\n") or not content else content + b"\n"), b""
    cut = content.rfind(b"\n") + 1
    return content[:cut], content[cut:]


def _block(
    block: bytes, first_line: int, found: Header, wanted: list[str], label: str, report: IngestReport
) -> pl.DataFrame:
    """Parses whole lines; those of a wrong number of fields are quarantined."""
    content = np.frombuffer(block.replace(b"\r\n", b"\n"), np.uint8)
    ends = np.flatnonzero(content == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    blank = ends == starts
    quoted = _count_per_line(content, '"', ends) > 0
    plain = ~blank & ~quoted & (_count_per_line(content, found.separator, ends) == len(found.names) - 1)
    lines = np.arange(first_line, first_line + len(ends), dtype=np.int64)
    report.rows_read += int((~blank).sum())
    report.quarantine("wrong number of fields", label, lines[~(blank | quoted | plain)].tolist())

    kept = content if plain.all() else content[np.repeat(plain, ends + 1 - starts)]
    frame = _plain_lines(kept.tobytes(), found, wanted).insert_column(0, pl.Series(LINE, lines[plain]))
    if not quoted.any():
        return frame
    texts = [bytes(content[starts[i] : ends[i]]).decode("utf-8", "replace") for i in np.flatnonzero(quoted)]
    special = _quoted_lines(texts, lines[quoted], found, wanted, label, report)
    return pl.concat([frame, special]).sort(LINE)


def _count_per_line(content: np.ndarray, character: str, ends: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    places = np.flatnonzero(content == ord(character))
    if not len(places):
        return np.zeros(len(ends), np.int64)
    return np.diff(np.searchsorted(places, ends), prepend=0)


def _plain_lines(content: bytes, found: Header, wanted: list[str]) -> pl.DataFrame:
    if not content:
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))
    return pl.read_csv(
        io.BytesIO(content),
        has_header=False,
        new_columns=list(found.names),
        separator=found.separator,
        quote_char=None,
        infer_schema=False,
        encoding="utf8-lossy",
    ).select(wanted)


def _quoted_lines(
    texts: list[str], lines: Int[np.ndarray, " n"], found: Header, wanted: list[str], label: str, report: IngestReport
) -> pl.DataFrame:
    """Lines with quotes, each parsed alone so that an unclosed quote ends with its line."""
    parsed = [_split(text, found.separator) for text in texts]
    fits: Bool[np.ndarray, " n"] = np.array([len(fields) == len(found.names) for fields in parsed])
    report.quarantine("wrong number of fields", label, lines[~fits].tolist())
    good = [fields for fields, fit in zip(parsed, fits, strict=True) if fit]
    places = [found.names.index(name) for name in wanted]
    data = {name: [fields[place] for fields in good] for name, place in zip(wanted, places, strict=True)}
    frame = pl.DataFrame(data, schema=dict.fromkeys(wanted, pl.String))
    return frame.insert_column(0, pl.Series(LINE, lines[fits]))


def _parquet(file: SourceFile, limits: Limits) -> pq.ParquetFile:
    try:
        if file.member or file.path.lower().endswith(".gz"):
            status = (file.root / file.path).lstat()
            return pq.ParquetFile(_unpacked(file, limits, status.st_mtime_ns, status.st_size).name)
        with opened(file, limits):
            return pq.ParquetFile(file.root / file.path)
    except (pa.ArrowException, *DAMAGE) as error:
        what = str(error) or type(error).__name__
        raise Refused(f"not a readable Parquet file ({what.splitlines()[0]})") from error


@functools.lru_cache(maxsize=1)  # a file's header and rows are asked for one after the other
def _unpacked(file: SourceFile, limits: Limits, *_version: int) -> IO[bytes]:
    """The unpacked file; it is removed when the next one takes its place, or at the end."""
    scratch = tempfile.NamedTemporaryFile(prefix="lsm_jax-", suffix=".parquet")  # noqa: SIM115
    with opened(file, limits) as stream:
        while piece := stream.read(BLOCK_BYTES):
            scratch.write(piece)
    scratch.flush()
    return scratch


def _text(cells: pl.Series) -> pl.Series:
    """Text that Parquet keeps in another way."""
    if cells.dtype != pl.Binary:
        return cells.cast(pl.String)
    decoded = [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]
    return pl.Series(cells.name, decoded, dtype=pl.String)


def _parquet_rows(file: SourceFile, wanted: list[str], report: IngestReport, limits: Limits) -> Iterator[pl.DataFrame]:
    first = 1
    with _parquet(file, limits) as table:
        for name in wanted:
            kind = table.schema_arrow.field(name).type
            if pa.types.is_nested(kind) or pa.types.is_duration(kind) or pa.types.is_time(kind):
                raise Refused(f"column {name!r} holds {kind}: write it as numbers, text or instants")
        try:
            for batch in table.iter_batches(batch_size=1 << 18, columns=wanted):
                frame = pl.from_arrow(pa.Table.from_batches([batch]))
                assert isinstance(frame, pl.DataFrame)
                frame = frame.with_columns(_text(column) for column in frame if column.dtype in _WORDS)
                report.rows_read += len(frame)
                yield frame.insert_column(0, pl.Series(LINE, np.arange(first, first + len(frame), dtype=np.int64)))
                first += len(frame)
        except (pa.ArrowException, *DAMAGE) as error:
            raise Refused(f"damaged after row {first - 1}, what stands before is kept ({error})") from error


def _workbook(file: SourceFile, limits: Limits) -> tuple[pl.DataFrame, int]:
    """The first sheet, and how many others there are."""
    status = (file.root / file.path).lstat()
    return _parsed_workbook(file, limits, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # the header and the rows of a workbook are asked for one after the other
def _parsed_workbook(file: SourceFile, limits: Limits, *_version: int) -> tuple[pl.DataFrame, int]:
    content = checked_workbook(file, limits)
    try:
        sheet = pl.read_excel(io.BytesIO(content), engine="calamine", infer_schema_length=0, drop_empty_rows=False)
        return sheet.rename(str.strip), len(fastexcel.read_excel(content).sheet_names) - 1
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust parser's panics are no Exception
        raise Refused(f"not a readable Excel workbook ({type(error).__name__})") from error
