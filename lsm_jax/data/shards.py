"""Reads the files of a dataset as untrusted input: names, sizes and contents are checked before use.

TFDS's own reader is not used, because it imports the Python class named in `features.json` and opens the paths given in
`dataset_info.json`. Here file names are built from the names and counts of splits, and must be plain files of the
dataset's folder.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet
import xxhash
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lsm_jax.data.card import CHECKSUM, INDEX_SCHEMA, SPLITS
from lsm_jax.data.codec import Record, parse_record
from lsm_jax.data.faults import FailedRead, RecordError, first_line, may_pass, with_retries
from lsm_jax.errors import RunError, UserError
from lsm_jax.windows import Window

NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_NUMBER = 1e30  # squares of numbers in a sidecar must not overflow
_MAX_SHARDS = 100_000
_BLOCK = 2**16  # bytes: an ArrayRecord file is whole blocks, of which the last begins with the postscript
_POSTSCRIPT = 256
_THREADS = 32  # that look at shards


class ShardReader:
    """Random access to the records of several shards. A damaged record is a RecordError that names its file."""

    def __init__(self, directory: Path, shards: Mapping[str, int], channel_count: int) -> None:
        self._directory = directory
        self._shards = dict(shards)
        self._names = list(shards)
        self._ends = np.cumsum(list(shards.values()), dtype=np.int64)
        self._channel_count = channel_count
        self._source = []
        if shards:
            try:
                self._source = with_retries(lambda: ArrayRecordDataSource([str(directory / shard) for shard in shards]))
            except Exception as error:  # the native reader raises many types
                raise UserError(f"{directory}: a shard cannot be read ({first_line(error)}). Write it again.") from None
        if len(self._source) != sum(shards.values()):
            raise UserError(
                f"{directory}: shards hold {len(self._source)} windows, dataset_info.json says "
                f"{sum(shards.values())}. The dataset is partial; write it again."
            )

    def __len__(self) -> int:
        return len(self._source)

    def record(
        self,
        position: int,
        check: Callable[[bytes, Record], None] = lambda *_: None,
        failed: Callable[[FailedRead], None] = lambda _: None,
    ) -> Record:
        """The record at a position, with cells as codes.

        Args:
          check: called with the bytes and the record; raises ValueError if they are not what they should be.
          failed: called with each read that failed and is tried again.

        Raises:
          RecordError: it is damaged.
          RunError: its shard has gone, or its file system.
        """
        try:
            serialised = with_retries(
                lambda: self._source[position],
                lambda error: failed(FailedRead(str(self._directory / self.place(position)[0]), first_line(error))),
            )
            record = parse_record(serialised, self._channel_count)
            check(serialised, record)
        except Exception as error:
            if may_pass(error):
                self._check_openable(position, error)
            raise self.damaged(position, first_line(error)) from None
        return record

    def _check_openable(self, position: int, failure: Exception) -> None:
        """RunError if not only this record, but its whole file cannot be read."""
        file = self._directory / self.place(position)[0]
        try:
            ArrayRecordDataSource([str(file)])
        except Exception as error:
            if may_pass(error):
                raise RunError(
                    f"{file} cannot be read, nor opened again ({first_line(failure)}). See to the file or its file "
                    "system, then start the same command again; no record was set aside for it."
                ) from None

    def window(self, position: int, channels: Sequence[str], record: Record | None = None) -> Window:
        """The decoded window at a position; `record` is its record if it was read before."""
        record = record or self.record(position)
        try:
            return record.window(channels)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise self.damaged(position, first_line(error)) from None

    def windows(self, channels: Sequence[str]) -> Iterator[tuple[Window, int]]:
        """All windows, in order, with the checksums of their records."""
        found: list[int] = []
        for position in range(len(self)):
            record = self.record(position, lambda serialised, _: found.append(checksum(serialised)))
            yield self.window(position, channels, record), found.pop()

    def place(self, position: int) -> tuple[str, int]:
        """The shard of a record, and its number there."""
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return self._names[shard], position - int(self._ends[shard - 1] if shard else 0)

    def damaged(self, position: int, reason: str) -> RecordError:
        """The error of a damaged record; IndexError if there is no such record."""
        if not 0 <= position < len(self):
            raise IndexError(f"window {position} of {len(self)}")
        return RecordError(self._directory, *self.place(position), reason)


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
            try:
                plain = stat.S_ISREG(with_retries(file.lstat).st_mode)
            except FileNotFoundError:
                plain = False
            except OSError as error:
                raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
            if not plain:
                raise UserError(f"{file}: shard is missing, or not a plain file. Write the dataset again.")
        shards[split] = dict(zip(names, lengths[split], strict=True))
    return shards


def read_json(directory: Path, name: str, kind: type) -> Any:
    """A JSON file of a dataset; UserError if it is missing, too large, damaged or not of type `kind`."""
    file = directory / name
    try:
        size = with_retries(file.stat).st_size
        if size > _MAX_JSON_BYTES:
            raise UserError(f"{file}: {size} bytes is more than such a file can have.")
        text = with_retries(lambda: file.read_text(encoding="utf-8"))
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
    """`index.parquet`, one row per window. Read by Arrow, because Polars aborts the process on some damaged files.

    The checksums of a dataset that was written without them are null.
    """
    file = directory / "index.parquet"
    try:
        frame = pl.from_arrow(with_retries(lambda: pyarrow.parquet.read_table(file)))
        assert isinstance(frame, pl.DataFrame)
        if CHECKSUM not in frame.columns:
            frame = frame.with_columns(pl.lit(None, pl.UInt64).alias(CHECKSUM))
        return frame.select(list(INDEX_SCHEMA)).cast(INDEX_SCHEMA)
    except (OSError, ValueError, pyarrow.ArrowException, pl.exceptions.PolarsError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}). Write the dataset again.") from None


def checksum(record: bytes) -> int:
    """A 64-bit checksum of a record (XXH3), for telling records apart."""
    return xxhash.xxh3_64_intdigest(record)


def shard_marks(directory: Path, shards: Mapping[str, int]) -> list[str]:
    """What tells each shard from another: name, count of records, size, and a digest of the last part of its file.

    That part of an ArrayRecord file says where its index of the records begins, and so how long they are together.
    """

    def mark(shard: str) -> str:
        with (directory / shard).open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(size - _BLOCK, 0))
            return f"{shard} {shards[shard]} {size} {hashlib.blake2b(file.read(_POSTSCRIPT)).hexdigest()}"

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return [*pool.map(lambda shard: with_retries(lambda: mark(shard)), shards)]
