"""Sorts rows of many people by person on disk, so that one person can be read at a time."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from lsm_jax.errors import RunError
from lsm_jax.ingest.cells import PERSON


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
