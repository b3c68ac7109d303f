"""Delimited text. It is cut into lines here and not by the parser: a stray quote or a short line costs that line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, UInt8

from lsm_jax.ingest.cells import LINE
from lsm_jax.ingest.files.opening import open_file
from lsm_jax.ingest.files.source import MIB, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import Header, split_line

BLOCK_BYTES = 8 * MIB


@dataclasses.dataclass(frozen=True)
class TextTable:
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
        rows = [split_line(text, self.header.separator) for text in texts]
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
