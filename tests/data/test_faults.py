"""Failed reads are tried again; corrupt records are set aside, and every other window keeps its place."""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from random_windows import CHANNELS, random_windows

from lsm_jax.config import DataConfig
from lsm_jax.data.faults import ReadFaults, read_corrupt_records
from lsm_jax.data.loader import Loader, evaluation_batches
from lsm_jax.data.order import DataOrder
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import Dataset, open_dataset, write_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.suite import corrupt_records

SHARD = "short-train.array_record-00000-of-00001"


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """Forty short windows, 28 of them for training."""
    folder = tmp_path_factory.mktemp("faults") / "short"
    write_dataset(folder, "short", CHANNELS, random_windows(20, 2, steps=60))
    return folder


@pytest.fixture
def copy(short, copy_of) -> Path:
    """A copy of it to damage."""
    return copy_of(open_dataset(short))


def flip(shard: Path, *records: int) -> None:
    """Flips a bit of each of these records, in a shard of less than a block (64 KiB)."""
    content, chunk = bytearray(shard.read_bytes()), 64
    for number in range(max(records) + 1):
        size = int.from_bytes(content[chunk + 8 : chunk + 16], "little")
        content[chunk + 40 + size // 2] ^= 1 if number in records else 0
        chunk += 40 + size
    shard.write_bytes(content)


def replace_record(shard: Path, number: int, other: int) -> None:
    """Writes a shard again, with a copy of another record in place of one."""
    records = [*ArrayRecordDataSource([str(shard)])]
    records[number] = records[other]
    writer = ArrayRecordWriter(str(shard), "group_size:1,zstd:1")
    for record in records:
        writer.write(record)
    writer.close()


def without_checksums(folder: Path) -> None:
    """Makes a dataset like those that were written before records had checksums."""
    index = pl.read_parquet(folder / "index.parquet")
    index.drop("checksum").write_parquet(folder / "index.parquet")


class Log:
    """Takes the events of a run."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, event: str, sentence: str, *, step: int | None = None, **details: Any) -> None:
        self.events.append((event, sentence, details))

    def names(self) -> list[str]:
        return [event for event, *_ in self.events]


def of_run(workdir: Path, limit: int, process: int, log: Log) -> ReadFaults:
    faults = ReadFaults(limit)
    faults.begin_run(workdir, process, log)
    return faults


def open_with(folder: Path, faults: ReadFaults, **changes: Any) -> tuple[DataConfig, list[Dataset]]:
    config = DataConfig(paths=(str(folder),), window_minutes=60, **changes)
    return config, [dataclasses.replace(dataset, faults=faults) for dataset in open_datasets(config)]


def batches(
    folder: Path, count: int, faults: ReadFaults | None = None, workers: int = 0, **arguments: Any
) -> list[dict[str, np.ndarray]]:
    """The first batches of the training split."""
    config, datasets = open_with(folder, faults or ReadFaults(99, Log()), workers=workers)
    arguments = {"seed": 3, "batch_size": 8} | arguments
    loader = Loader(config, datasets, data_spec(config, datasets), "train", **arguments)
    try:
        return list(itertools.islice(loader, count))
    finally:
        loader.close()


def rows(batches: list[dict[str, np.ndarray]]) -> dict[int, bytes]:
    """The cells of every window by its id: its position in the data order."""
    return {
        int(number): batch["values"][row].tobytes()
        for batch in batches
        for row, number in enumerate(batch["window_id"])
    }


def positions_of(records: set[int], count: int, folder: Path) -> set[int]:
    """Where the data order has these records."""
    size = len(open_dataset(folder).source("train"))
    _, windows = DataOrder(3, [size], [1.0]).lookup(np.arange(count))
    return {int(position) for position in np.flatnonzero(np.isin(windows, [*records]))}


@settings(max_examples=12)
@given(
    st.sets(st.integers(0, 27), min_size=1, max_size=3),
    st.sampled_from([(4, 1), (8, 1), (8, 2), (8, 4), (12, 3)]),
    st.integers(0, 9),
)
def test_all_windows_but_the_corrupt_ones_keep_their_positions(short, tmp_path_factory, corrupt, sizes, first):
    folder = Path(shutil.copytree(short, tmp_path_factory.mktemp("flipped") / "short"))
    flip(folder / SHARD, *corrupt)
    size, hosts = sizes
    whole = rows(batches(short, 64 // size, batch_size=size))
    replaced = rows(batches(folder, 64 // size, batch_size=size))
    places = positions_of(corrupt, len(whole), short)
    assert {place for place in whole if whole[place] != replaced[place]} == places
    assert {replaced[place] for place in places} <= {*whole.values()}, "windows of the dataset take their places"
    shares = [
        rows(batches(folder, 64 // size - first // 4, batch_size=size, position=first // 4,
                     process_index=host, process_count=hosts))
        for host in range(hosts)
    ]  # fmt: skip
    joined = {place: cells for share in shares for place, cells in share.items()}
    assert joined == {place: cells for place, cells in replaced.items() if place >= first // 4 * size}


def test_balanced_rows_with_a_corrupt_record_do_not_depend_on_the_number_of_hosts(copy) -> None:
    flip(copy / SHARD, 4, 11)
    balance = RowBalancer.for_batch(16, windows_per_row=2, grad_accum_steps=2)
    whole = rows(batches(copy, 4, batch_size=16, balance=balance))
    shares = [
        rows(batches(copy, 4, batch_size=16, balance=balance, process_index=host, process_count=4)) for host in range(4)
    ]
    assert {place: cells for share in shares for place, cells in share.items()} == whole


def test_workers_hand_over_what_they_find(copy, tmp_path) -> None:
    flip(copy / SHARD, 4, 11)
    log = Log()
    expected = rows(batches(copy, 4))
    faults = of_run(tmp_path / "run", 5, 0, log)
    found = batches(copy, 4, faults, workers=1)
    assert rows(found) == expected
    assert all(isinstance(part, np.ndarray) for batch in found for part in batch.values()), "nothing else for devices"
    assert {details["record"] for event, _, details in log.events if event == "corrupt_record"} == {4, 11}
    assert faults.count == 2


def test_a_corrupt_record_is_listed_and_reported_once_over_all_starts(copy, tmp_path) -> None:
    flip(copy / SHARD, 4)
    log, workdir = Log(), tmp_path / "run"
    before = rows(batches(copy, 8, of_run(workdir, 5, 0, log)))  # more than two epochs
    corrupt = [event for event in log.events if event[0] == "corrupt_record"]
    ((_, sentence, details),) = corrupt
    assert sentence.startswith(f"set aside: record 4 of the train split of short ({SHARD}: Corrupted")
    (line,) = (workdir / "corrupt_records.jsonl").read_text().splitlines()
    assert json.loads(line) == details
    assert {key: details[key] for key in ("dataset", "split", "record", "shard")} == {
        "dataset": "short", "split": "train", "record": 4, "shard": SHARD,
    }  # fmt: skip
    # The next start knows it: the same windows even if it can be read again, and no second report.
    flip(copy / SHARD, 4)
    again = Log()
    known = of_run(workdir, 5, 1, again)
    assert rows(batches(copy, 8, known)) == before
    assert (known.count, again.events) == (1, [])


def test_more_corrupt_records_than_the_limit_are_an_error_that_names_them(copy, tmp_path) -> None:
    flip(copy / SHARD, 4, 7, 11)
    with pytest.raises(RunError, match=r"3 corrupt records are more than data.max_corrupt=2: record \d+ of the train"):
        batches(copy, 8, of_run(tmp_path, 2, 0, Log()))
    assert {record.record for record in read_corrupt_records(tmp_path)} == {4, 7, 11}


def test_a_negative_limit_is_refused(short) -> None:
    with pytest.raises(UserError, match=r"data\.max_corrupt=-1"):
        open_datasets(DataConfig((str(short),), max_corrupt=-1))


def test_a_dataset_without_a_readable_record_is_an_error(copy) -> None:
    flip(copy / SHARD, *range(28))
    with pytest.raises(RunError, match="no readable record"):
        batches(copy, 1)


@pytest.mark.parametrize("failures", [1, 4])
def test_a_passing_failure_of_the_file_system_is_tried_again(short, monkeypatch, failures) -> None:
    expected = rows(batches(short, 3))
    read, log = ArrayRecordDataSource.__getitem__, Log()
    left: dict[int, int] = collections.defaultdict(lambda: failures)  # of each source

    def failing(source: ArrayRecordDataSource, key: int) -> bytes:
        if left[id(source)]:
            left[id(source)] -= 1
            native = RuntimeError("pread() failed: Input/output error; reading x")
            raise native if left[id(source)] % 2 else OSError(errno.EIO, "Input/output error")
        return read(source, key)

    monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", failing)
    assert rows(batches(short, 3, ReadFaults(0, log))) == expected
    assert log.names() == ["read_retried"] * failures
    assert SHARD in log.events[0][1]


def test_a_dataset_is_opened_in_spite_of_passing_failures(short, monkeypatch) -> None:
    left = [3]
    for function in ("lstat", "read_text"):
        real = getattr(Path, function)

        def failing(path, *arguments, real=real, **keywords):
            if left[0] and path.suffix != ".py":
                left[0] -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(path, *arguments, **keywords)

        monkeypatch.setattr(Path, function, failing)
    assert len(open_dataset(short).source("train")) == 28
    assert left == [0]


@pytest.mark.parametrize("checksums", [True, False])
def test_a_record_in_the_place_of_another_is_found(copy, checksums) -> None:
    log = Log()
    replace_record(copy / SHARD, 4, other=9)
    if not checksums:
        without_checksums(copy)
    batches(copy, 8, ReadFaults(1, log))
    assert [details["record"] for _, _, details in log.events] == [4]
    assert "not the record that" in log.events[0][1]


def test_evaluation_sets_a_corrupt_record_aside(copy, short, capsys) -> None:
    shard = copy / SHARD.replace("train", "test")
    flip(shard, 2)
    dataset, whole = open_dataset(copy), open_dataset(short)
    spec = data_spec(DataConfig(window_minutes=30), [whole])
    found, expected = ([*evaluation_batches(each.source("test"), spec, 3)] for each in (dataset, whole))
    assert [(info.index, info.offset) for _, infos in found for info in infos] == [
        (info.index, info.offset) for _, infos in expected for info in infos if info.index != 2
    ]
    kept = {key: cells for key, cells in rows([batch for batch, _ in expected]).items() if key // 2 != 2}
    assert kept.items() <= rows([batch for batch, _ in found]).items(), "all other rows keep their ids"
    assert capsys.readouterr().err.count("set aside: record 2 of the test split of short") == 1
    assert [position for position, _ in dataset.source("test").readable(range(4))] == [0, 1, 3]
    (note,) = corrupt_records([whole, dataset])  # of a suite's result
    assert note.startswith("short-2: set aside record 2 of the test split of short")


def test_a_shard_that_vanishes_while_a_run_reads_it_ends_it_and_costs_no_record(copy, tmp_path) -> None:
    config, datasets = open_with(copy, of_run(tmp_path / "run", 3, 0, Log()))
    loader = Loader(config, datasets, data_spec(config, datasets), "train", seed=3, batch_size=8)
    (copy / SHARD).unlink()
    with pytest.raises(RunError, match=rf"{SHARD} cannot be read, nor opened again \(open\(\) failed: No such file"):
        next(loader)
    loader.close()
    assert read_corrupt_records(tmp_path / "run") == []


def test_a_record_on_a_bad_sector_is_set_aside(short, monkeypatch) -> None:
    read, log = ArrayRecordDataSource.__getitem__, Log()

    def failing(source: ArrayRecordDataSource, key: int) -> bytes:
        if key == 5:
            raise RuntimeError("pread() failed: Input/output error")
        return read(source, key)

    monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", failing)
    batches(short, 8, ReadFaults(1, log))
    assert [details["record"] for event, _, details in log.events if event == "corrupt_record"] == [5]
    assert log.names().count("read_retried") >= 6


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(short, copy, tmp_path) -> None:
    original = open_dataset(short).fingerprint
    assert len(original) == 32
    assert int(original, 16)
    dataset = open_dataset(copy)
    assert dataset.fingerprint == original
    dataset.add_to_card("captions", {"semantic": 1})
    assert open_dataset(copy).fingerprint == original
    replace_record(copy / SHARD, 4, other=9)
    changed = open_dataset(copy).fingerprints
    assert {part for part, digest in open_dataset(short).fingerprints.items() if changed[part] != digest} == {"shards"}
    write_dataset(tmp_path / "other", "short", CHANNELS, random_windows(20, 2, steps=60, seed=1))
    other = open_dataset(tmp_path / "other").fingerprints
    assert {part for part, digest in dataset.fingerprints.items() if other[part] != digest} >= {
        "index",
        "normalisation",
    }
    without_checksums(copy)
    assert open_dataset(copy).fingerprint not in (original, other)
