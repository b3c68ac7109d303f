"""Rows of many people, sorted by person on disk, so that one person can be read at a time.

Each block of parsed rows is sorted by person and written as one Arrow file; an index of (file, offset,
length) per person stays in memory. Reading a person touches only their slices. Disk: the parsed columns
once, less than the text they came from.
"""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path

import polars as pl

PERSON = "__person__"


@dataclasses.dataclass(frozen=True)
class Piece:
    """One person's rows in one spilled file."""

    path: str
    offset: int
    length: int


class Spill:
    """Rows by person; `add` blocks, then `pieces` of each person and `load` them anywhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pieces: dict[str, list[Piece]] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """Writes a block; column `PERSON` holds the raw id, row order is kept within a person."""
        if not len(frame):
            return
        frame = frame.sort(PERSON, maintain_order=True)
        path = self._folder / f"{uuid.uuid4().hex}.arrow"
        frame.drop(PERSON).rechunk().write_ipc(path, compression="uncompressed")
        offset = 0
        for person, length in frame[PERSON].rle().struct.unnest().select("value", "len").iter_rows():
            self.pieces.setdefault(person, []).append(Piece(str(path), offset, length))
            offset += length


def load(pieces: tuple[Piece, ...]) -> pl.DataFrame:
    """The rows of these pieces, in the order they were read; at least one piece."""
    return pl.concat([pl.scan_ipc(piece.path).slice(piece.offset, piece.length) for piece in pieces]).collect()
