"""Reads the files of a dataset as untrusted input: names, sizes and contents are checked before use.

TFDS's own reader is not used, because it imports the Python class named in `features.json` and opens the paths given in
`dataset_info.json`. Here file names are built from the names and counts of splits, and must be plain files of the
dataset's folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lsm_jax.data.card import INDEX_SCHEMA, SPLITS
from lsm_jax.data.codec import Record, parse_record
from lsm_jax.errors import UserError
from lsm_jax.windows import Window

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_NUMBER = 1e30  # squares of numbers in a sidecar must not overflow
_MAX_SHARDS = 100_000


class ShardReader:
    """Random access to the records of several shards. A damaged record is a UserError that names its file."""

    def __init__(self, directory: Path, shards: Mapping[str, int], channel_count: int) -> None:
        self._directory = directory
        self._shards = dict(shards)
        self._ends = np.cumsum(list(shards.values()), dtype=np.int64)
        self._channel_count = channel_count
        self._source = []
        if shards:
            try:
                self._source = ArrayRecordDataSource([str(directory / shard) for shard in shards])
            except Exception as error:  # the native reader raises many types
                raise UserError(f"{directory}: a shard cannot be read ({first_line(error)}). Write it again.") from None
        if len(self._source) != sum(shards.values()):
            raise UserError(
                f"{directory}: shards hold {len(self._source)} windows, dataset_info.json says "
                f"{sum(shards.values())}. The dataset is partial; write it again."
            )

    def __len__(self) -> int:
        return len(self._source)

    def record(self, position: int) -> Record:
        """The record at a position, with cells as codes."""
        try:
            return parse_record(self._source[position], self._channel_count)
        except Exception as error:
            raise self._damaged(position, error) from None

    def window(self, position: int, channels: Sequence[str], record: Record | None = None) -> Window:
        """The decoded window at a position; `record` is its record if it was read before."""
        record = record or self.record(position)
        try:
            return record.window(channels)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise self._damaged(position, error) from None

    def windows(self, channels: Sequence[str]) -> Iterator[Window]:
        """All windows, in order."""
        return (self.window(position, channels) for position in range(len(self)))

    def _damaged(self, position: int, error: Exception) -> Exception:
        if not 0 <= position < len(self):
            return IndexError(f"window {position} of {len(self)}")
        shard = int(np.searchsorted(self._ends, position, side="right"))
        within = position - int(self._ends[shard - 1] if shard else 0)
        file = self._directory / list(self._shards)[shard]
        return UserError(f"{file}: record {within} is damaged ({first_line(error)}). Write the dataset again.")


def read_info(directory: Path) -> dict[str, Any]:
    """The content of `dataset_info.json`; UserError if it does not describe an ArrayRecord dataset."""
    info = read_json(directory, "dataset_info.json", dict)
    name = info.get("name")
    if info.get("fileFormat") != "array_record" or not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{directory / 'dataset_info.json'}: not an ArrayRecord dataset of this framework.")
    return info


def list_shards(directory: Path, info: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Shard file names and record counts by split. Names are built here, never taken from a file."""
    try:
        lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in info["splits"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{directory / 'dataset_info.json'}: its list of splits is damaged.") from None
    shards: dict[str, dict[str, int]] = {}
    for split in (split for split in SPLITS if split in lengths):
        count = len(lengths[split])
        if count > _MAX_SHARDS or min(lengths[split], default=0) < 0:
            raise UserError(f"{directory / 'dataset_info.json'}: impossible shards in split {split!r}.")
        names = [f"{info['name']}-{split}.array_record-{shard:05d}-of-{count:05d}" for shard in range(count)]
        for name in names:
            file = directory / name
            if file.is_symlink() or not file.is_file():
                raise UserError(f"{file}: shard is missing, or not a plain file. Write the dataset again.")
        shards[split] = dict(zip(names, lengths[split], strict=True))
    return shards


def read_json(directory: Path, name: str, kind: type) -> Any:
    """A JSON file of a dataset; UserError if it is missing, too large, damaged or not of type `kind`."""
    file = directory / name
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{file}: {file.stat().st_size} bytes is more than such a file can have.")
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, parse_float=_bounded, parse_int=_bounded_whole, parse_constant=_bounded)
    except FileNotFoundError:
        raise UserError(f"{directory} is not a complete dataset: {name} is missing. Write it again.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: not readable as JSON ({first_line(error)}). Write the dataset again.") from None
    if not isinstance(content, kind):
        raise UserError(f"{file}: expected a JSON {'object' if kind is dict else 'list'}.")
    return content


def _bounded(number: str) -> float:
    if not abs(float(number)) < _MAX_NUMBER:
        raise ValueError(f"the number {number[:20]} is out of all proportion")
    return float(number)


def _bounded_whole(number: str) -> int:
    return int(_bounded(number)) if len(number) > 15 else int(number)


def read_index(directory: Path) -> pl.DataFrame:
    """`index.parquet`, one row per window. Read by Arrow, because Polars aborts the process on some damaged files."""
    file = directory / "index.parquet"
    try:
        frame = pl.from_arrow(pyarrow.parquet.read_table(file, columns=list(INDEX_SCHEMA)))
        assert isinstance(frame, pl.DataFrame)
        return frame.cast(INDEX_SCHEMA)
    except (OSError, ValueError, pyarrow.ArrowException, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}). Write the dataset again.") from None


def first_line(error: Exception) -> str:
    """The first line of an error message, at most 160 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]
