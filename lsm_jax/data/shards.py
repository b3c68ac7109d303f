"""The files of a dataset, read as if they were hostile: names, sizes and contents are checked before they are used.

TFDS's own reader is not used here: it imports whatever Python class `features.json` names and opens whatever path
`dataset_info.json` spells. File names are built from the split names and counts, and must be plain files inside.
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

from lsm_jax.data.card import INDEX_SCHEMA
from lsm_jax.data.codec import Record, parse_record
from lsm_jax.errors import UserError
from lsm_jax.windows import Window

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SIDECAR_BYTES = 64 * 2**20  # a larger JSON beside a dataset is an attack or an accident
_LARGEST_NUMBER = 1e30
_MOST_SHARDS = 100_000


class Records:
    """The records of some shards, as one sequence; a damaged one is a UserError that names its file."""

    def __init__(self, directory: Path, shards: Mapping[str, int], channel_count: int) -> None:
        self._directory = directory
        self._shards = dict(shards)
        self._ends = np.cumsum(list(shards.values()), dtype=np.int64)
        self._channel_count = channel_count
        self._source = []
        if shards:
            try:
                self._source = ArrayRecordDataSource([str(directory / shard) for shard in shards])
            except Exception as error:  # the native reader raises what it likes
                raise UserError(f"{directory}: a shard cannot be read ({first_line(error)}). Write it again.") from None
        if len(self._source) != sum(shards.values()):
            raise UserError(
                f"{directory}: shards hold {len(self._source)} windows, dataset_info.json says "
                f"{sum(shards.values())}. The dataset is partial; write it again."
            )

    def __len__(self) -> int:
        return len(self._source)

    def record(self, position: int) -> Record:
        """The record at a position, its cells still codes."""
        try:
            return parse_record(self._source[position], self._channel_count)
        except Exception as error:
            raise self._damaged(position, error) from None

    def window(self, position: int, channels: Sequence[str]) -> Window:
        """The window at a position."""
        record = self.record(position)
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
    """`dataset_info.json`; UserError where it is not that of an ArrayRecord dataset."""
    info = read_json(directory, "dataset_info.json", dict)
    name = info.get("name")
    if info.get("fileFormat") != "array_record" or not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{directory / 'dataset_info.json'}: not an ArrayRecord dataset of this framework.")
    return info


def list_shards(directory: Path, info: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """File names of every split's shards with their record counts; the names are ours, never the file's word."""
    try:
        lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in info["splits"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{directory / 'dataset_info.json'}: its list of splits is damaged.") from None
    shards: dict[str, dict[str, int]] = {}
    for split in (split for split in SPLITS if split in lengths):
        count = len(lengths[split])
        if count > _MOST_SHARDS or min(lengths[split], default=0) < 0:
            raise UserError(f"{directory / 'dataset_info.json'}: impossible shards in split {split!r}.")
        names = [f"{info['name']}-{split}.array_record-{shard:05d}-of-{count:05d}" for shard in range(count)]
        for name in names:
            file = directory / name
            if file.is_symlink() or not file.is_file():
                raise UserError(f"{file}: shard is missing, or not a plain file. Write the dataset again.")
        shards[split] = dict(zip(names, lengths[split], strict=True))
    return shards


def read_json(directory: Path, name: str, kind: type) -> Any:
    """The JSON file of a dataset; UserError where it is missing, too large, damaged or of another kind."""
    file = directory / name
    try:
        if file.stat().st_size > _SIDECAR_BYTES:
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
    """A number that no sum or square of a card's arithmetic overflows."""
    if not abs(float(number)) < _LARGEST_NUMBER:
        raise ValueError(f"the number {number[:20]} is out of all proportion")
    return float(number)


def _bounded_whole(number: str) -> int:
    return int(_bounded(number)) if len(number) > 15 else int(number)


def read_index(directory: Path) -> pl.DataFrame:
    """`index.parquet`: a row per window. Arrow reads it, because Polars aborts on some damaged files."""
    file = directory / "index.parquet"
    try:
        frame = pl.from_arrow(pyarrow.parquet.read_table(file, columns=list(INDEX_SCHEMA)))
        assert isinstance(frame, pl.DataFrame)
        return frame.cast(INDEX_SCHEMA)
    except (OSError, ValueError, pyarrow.ArrowException, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}). Write the dataset again.") from None


def first_line(error: Exception) -> str:
    """The first line of an error, cut to fit a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]
