"""Datasets on disk: written completely or not at all, and opened as untrusted input.

A dataset is a folder that `tfds.builder_from_directory` opens: ArrayRecord shards of the splits `train`, `validation`
and `test`, `dataset_info.json` and `features.json`. Beside them are `channels.json`, `normalisation.json` (moments of
the training split), `data_card.json` and `index.parquet` (one row per window, so that the people of a split are known
without decoding it).

Splits are by participant. Participants are ranked by a keyed hash of their id; the first 20 % are the test split, the
next 10 % the validation split, and the rest is for training. Ranks instead of hash thresholds make the shares exact,
even in a study of twelve people. The price is that adding people may move others to another split, so a study that has
grown is a new dataset for new runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from lsm_jax.channels import channels as registered
from lsm_jax.config import DataConfig
from lsm_jax.data.card import CHECKSUM, DatasetStatistics, Moments
from lsm_jax.data.codec import Record, RecordEncoder, record_features
from lsm_jax.data.faults import CorruptRecord, ReadFaults, RecordError
from lsm_jax.data.shards import (
    NAME,
    SPLITS,
    ShardReader,
    checksum,
    list_shards,
    read_index,
    read_info,
    read_json,
    shard_marks,
)
from lsm_jax.errors import UserError
from lsm_jax.storage import fetch_folder, is_url, local_copy
from lsm_jax.windows import Window

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
_WINDOWS_PER_SHARD = 4096
_FINGERPRINTED = {"channels": "channels.json", "normalisation": "normalisation.json", "index": "index.parquet"}
_WRITER_OPTIONS = "group_size:1,zstd:1"  # random access; higher zstd levels save 1 % of space for twice the time


def assign_splits(participants: Iterable[str], seed: int = 0) -> dict[str, str]:
    """The split of every participant (see the module docstring), a function of the set of participants and the seed.

    One person is in train, two are in train and test, and three or more fill all splits.
    """

    def rank(participant: str) -> bytes:
        return hashlib.blake2b(participant.encode(), key=b"lsm-split-%d" % seed, digest_size=16).digest()

    ranked = sorted({*participants}, key=rank)
    test = max(round(_TEST_SHARE * len(ranked)), int(len(ranked) >= 2))
    validation = max(round(_VALIDATION_SHARE * len(ranked)), int(len(ranked) >= 3))
    splits = ["test"] * test + ["validation"] * validation
    splits += ["train"] * (len(ranked) - len(splits))
    return dict(zip(ranked, splits, strict=True))


def people_subset(participants: Iterable[str], share: float) -> list[str]:
    """A share of the people, at least one: the lowest keyed hashes, so a smaller share is part of a larger one."""
    ranked = sorted(
        {*participants}, key=lambda person: hashlib.blake2b(person.encode(), key=b"lsm-share", digest_size=16).digest()
    )
    return ranked[: max(round(share * len(ranked)), 1)]


def write_dataset(
    out: Path,
    name: str,
    channels: Sequence[str],
    windows: Iterable[Window],
    *,
    seed: int = 0,
    description: str = "",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes windows, in any order, as a dataset. The same windows and seed give the same bytes.

    Windows are streamed: memory holds one window, and a few numbers for each window written. They are staged in a
    temporary folder beside `out`, distributed to splits once every participant is known, and moved to `out` in one
    rename.

    Args:
      out: the dataset's folder. It may exist if it holds a dataset and `overwrite` is set.
      name: a TFDS name of lower-case letters, digits and underscores.
      channels: canonical names of the dataset's columns; a channel that a window lacks is unobserved in it.
      progress: called with the number of windows read so far.

    Raises:
      UserError: there is no window, the name is bad, a channel is unknown, or `out` may not be replaced.
    """
    with staging_folder(out, name, channels, overwrite) as staging:
        staged = _stage(staging / "staged", channels, windows, progress)
        dataset = staging / "dataset"
        dataset.mkdir(mode=0o755)
        _write_splits(dataset, name, staging / "staged", staged, seed, description)
        finish_dataset(dataset, channels, out)


@contextlib.contextmanager
def staging_folder(out: Path, name: str, channels: Sequence[str], overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `out`, deleted in the end; UserError as by `write_dataset`."""
    check_output(out, name, channels, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_output(out: Path, name: str, channels: Sequence[str], overwrite: bool, option: str = "--out") -> None:
    """UserError where a dataset of this name and these channels may not be written to `out`.

    Args:
      option: of the command line, which names `out`.
    """
    registered(channels)
    if not NAME.fullmatch(name):
        raise UserError(f"dataset name {name!r}: use lower-case letters, digits and underscores, a letter first.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / "channels.json").is_file():
            raise UserError(f"{out} exists and is not a dataset; choose another {option}.")
        if not overwrite:
            raise UserError(
                f"{out} holds a dataset already; pass --overwrite to replace it or choose another {option}."
            )


def finish_dataset(directory: Path, channels: Sequence[str], out: Path) -> None:
    """Writes the sidecar files of a TFDS dataset of records (`codec.record_features`) and moves it to `out`.

    Index, moments and card are computed from the stored records, so they describe exactly what a run will read.
    """
    info = read_info(directory)
    statistics = DatasetStatistics(info["name"], info.get("description", ""), tuple(channels))
    for split, shards in list_shards(directory, info).items():
        for window, mark in ShardReader(directory, shards, len(channels)).windows(channels):
            statistics.add(split, window, mark)
    (directory / "channels.json").write_text(json.dumps(list(channels), indent=1))
    (directory / "normalisation.json").write_text(json.dumps(statistics.normalisation(), indent=1))
    (directory / "data_card.json").write_text(json.dumps(statistics.card(), indent=1))
    statistics.index().write_parquet(directory / "index.parquet")
    if out.exists():
        out.rename(directory.parent / "replaced")
    directory.rename(out)


class WindowSource:
    """Random access to the windows of one split.

    Args:
      dataset: which they belong to.
      index: a row for each window.
      rows: the windows' positions among the records.
    """

    def __init__(self, dataset: Dataset, split: str, records: ShardReader, index: pl.DataFrame, rows: np.ndarray):
        self.path, self.channels, self.faults = dataset.path, dataset.channels, dataset.faults
        self._place = dataset.name, dataset.fingerprint, split
        self._records = records
        self._rows = rows
        self._index = index
        self._checksums = None if index[CHECKSUM].null_count() else index[CHECKSUM].to_numpy()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Window:
        return self.window(position)

    def window(self, position: int, record: Record | None = None) -> Window:
        """The decoded window at a position; `record` is its record if it was read before."""
        return self._records.window(int(self._rows[position]), self.channels, record or self.record(position))

    def record(self, position: int) -> Record:
        """The record at a position, which the loader decodes directly into its batch.

        Raises:
          RecordError: it cannot be read, does not decode, or is not the one that the index describes. It is added to
            `faults`, and not read again.
          RunError: so are more records than the limit of `faults`, or the shard or its file system has gone.
        """
        number = int(self._rows[position])
        name, fingerprint, split = self._place
        if known := self.faults.known(fingerprint, split, number):
            raise self._records.damaged(number, known.reason)
        try:
            return self._records.record(number, functools.partial(self._check, position), self.faults.add)
        except RecordError as error:
            self.faults.add(CorruptRecord(name, fingerprint, split, number, error.shard, error.reason))
            raise

    def readable(self, positions: Iterable[int]) -> Iterator[tuple[int, Window]]:
        """The windows at these positions, each with its own; corrupt ones are reported and left out."""
        for position in positions:
            try:
                window = self.window(position)
            except RecordError:
                continue
            finally:
                self.faults.report_pending()
            yield position, window

    def _check(self, position: int, serialised: bytes, record: Record) -> None:
        """ValueError if a record is not the one that the index describes."""
        if self._checksums is not None:
            if checksum(serialised) != self._checksums[position]:
                raise ValueError("not the record that the dataset was written with: its checksum is another")
            return
        # A dataset without checksums: what a record of another window would differ in, and what may fail later.
        found = record.participant, record.start_seconds, record.codes.shape[1]
        if found != self._index.select("participant", "start_seconds", "steps").row(position):
            raise ValueError("not the record that index.parquet lists: its participant, start or length is another")
        record.labels()
        record.events()

    @property
    def participants(self) -> list[str]:
        """The participant of every window."""
        return self._index["participant"].to_list()

    @functools.cached_property
    def people(self) -> np.ndarray:
        """The participant of every window as a number from 0, int64[len]."""
        return self._index["participant"].rank("dense").to_numpy().astype(np.int64) - 1

    @property
    def num_people(self) -> int:
        """Number of participants."""
        return int(self.people.max(initial=-1)) + 1

    def of_same_person(self, index: int) -> np.ndarray:
        """The windows of the same person as window `index`, itself among them, in ascending order."""
        order, borders = self._by_person
        person = self.people[index]
        return order[borders[person] : borders[person + 1]]

    @functools.cached_property
    def _by_person(self) -> tuple[np.ndarray, np.ndarray]:
        """All windows in order of people, and where those of each person begin and end."""
        order = np.argsort(self.people, kind="stable")
        return order, np.searchsorted(self.people[order], np.arange(self.num_people + 1))

    @property
    def steps(self) -> np.ndarray:
        """Time steps of every window, int64[len]."""
        return self._index["steps"].to_numpy()

    @property
    def observed(self) -> np.ndarray:
        """Observed cells of every window, int64[len]."""
        return self._index["observed"].to_numpy()

    @property
    def start_seconds(self) -> np.ndarray:
        """Start of every window in seconds since the Unix epoch (UTC), int64[len]."""
        return self._index["start_seconds"].to_numpy()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      normalisation: moments of the training split by channel.
      training_minutes: time steps of the training split; a channel's observed share is its `count` divided by them.
      card: the content of `data_card.json`.
      people_share: share of the training people that the training split is limited to. Normalisation and card are those
        of all of them, so that runs on different shares have equal inputs and errors.
      faults: takes note of records that cannot be read.
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    normalisation: Mapping[str, Moments]
    training_minutes: int
    card: Mapping[str, Any]
    _shards: Mapping[str, Mapping[str, int]]
    _index: pl.DataFrame
    people_share: float = 1.0
    faults: ReadFaults = dataclasses.field(default_factory=lambda: ReadFaults(DataConfig().max_corrupt), compare=False)

    def source(self, split: str) -> WindowSource:
        """The windows of a split, possibly none; UserError if there is no such split or a shard is damaged."""
        if split not in SPLITS:
            raise UserError(f"dataset {self.name} has no split {split!r}; splits are {', '.join(SPLITS)}.")
        rows = self._index.filter(pl.col("split") == split)
        records = ShardReader(self.path, self._shards.get(split, {}), len(self.channels))
        if len(records) != len(rows):
            raise UserError(
                f"{self.path}: index.parquet lists {len(rows)} windows of split {split!r}, the shards hold "
                f"{len(records)}. The dataset is partial or mixed; write it again."
            )
        kept = np.arange(len(rows))
        if split == "train" and self.people_share < 1:
            kept = np.flatnonzero(rows["participant"].is_in(people_subset(rows["participant"], self.people_share)))
        return WindowSource(self, split, records, rows[kept], kept)

    @functools.cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Digests of the parts of the dataset that a run depends on: channels, normalisation, index and shards.

        The index holds a checksum of every record, which is compared whenever a record is read. So this costs a look
        at each shard, and still no other record can take the place of one. Path and card do not matter.
        """
        digests = {}
        for part, name in _FINGERPRINTED.items():
            with (self.path / name).open("rb") as file:
                digests[part] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        shards = {shard: count for split in self._shards.values() for shard, count in split.items()}
        return digests | {"shards": _digest("\n".join(shard_marks(self.path, shards)))}

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all `fingerprints`, 32 hexadecimal digits."""
        return _digest(" ".join(self.fingerprints.values()))

    def add_to_card(self, section: str, content: Mapping[str, Any]) -> None:
        """Merges content into a section of `data_card.json`; OSError if that cannot be written."""
        card = {**self.card, section: {**self.card.get(section, {}), **content}}
        partial = self.path / "data_card.partial"
        partial.write_text(json.dumps(card, indent=1))
        partial.replace(self.path / "data_card.json")

    def nonempty_source(self, split: str) -> WindowSource:
        """The windows of a split that must hold people; UserError if it has none."""
        source = self.source(split)
        if not len(source):
            raise UserError(
                f"dataset {self.name} ({self.path}) has no person in its {split} split: it holds "
                f"{self.card.get('people', 'too few')} people, and splits are by person. Ingest at least three people."
            )
        return source


def open_dataset(path: Path | str) -> Dataset:
    """Opens a dataset for reading; one in a store is fetched first, unless this host has it already.

    Raises:
      UserError: this is not a dataset, or it is partial, damaged or hostile. The message names the file and the fix.
    """
    directory = fetch_folder(str(path), local_copy(str(path), "data")) if is_url(path) else Path(path)
    if not directory.is_dir():
        raise UserError(f"{path}: no such dataset folder. `lsm synth` or `lsm ingest` makes one.")
    info = read_info(directory)
    channels = read_json(directory, "channels.json", list)
    if not channels or not all(isinstance(name, str) for name in channels) or len({*channels}) != len(channels):
        raise UserError(f"{directory / 'channels.json'}: must list channel names, each once.")
    registered(channels)
    moments, minutes = _normalisation(directory, channels)
    return Dataset(
        path=directory,
        name=info["name"],
        channels=tuple(channels),
        normalisation=moments,
        training_minutes=minutes,
        card=read_json(directory, "data_card.json", dict),
        _shards=list_shards(directory, info),
        _index=read_index(directory),
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _stage(
    file: Path, channels: Sequence[str], windows: Iterable[Window], progress: Callable[[int], None] | None
) -> list[tuple[str, int, int]]:
    """Writes windows to a staging file. Returns participant, start and size in bytes of each, in the same order."""
    staged = []
    encoder = RecordEncoder(channels)
    with _record_writer(file) as write:
        for window in windows:
            record = encoder.record(window)
            write(record)
            # Interned, so that memory for names grows with people and not with windows.
            staged.append((sys.intern(window.participant), int(window.start.timestamp()), len(record)))
            if progress:
                progress(len(staged))
    if not staged:
        raise UserError("no windows to write: the source holds no recorded minute. Check the report for refused rows.")
    return staged


@contextlib.contextmanager
def _record_writer(file: os.PathLike[str]) -> Iterator[Callable[[bytes], None]]:
    """A function that writes a record to a file. OSError if it cannot be written."""
    writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)

    def write(record: bytes) -> None:
        with _as_os_error():
            writer.write(record)

    try:
        yield write
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the first error is the one to tell
            writer.close()
        raise
    with _as_os_error():
        writer.close()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """ArrayRecord says RuntimeError where a disk is full."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).partition(";")[0]) from error


def _write_splits(
    directory: Path, name: str, file: Path, staged: list[tuple[str, int, int]], seed: int, description: str
) -> None:
    """Copies staged records to the shards of their splits, in order of participant and start."""
    split_of = assign_splits((participant for participant, _, _ in staged), seed)
    source = ArrayRecordDataSource(str(file))
    template = tfds.core.ShardedFileTemplate(data_dir=directory, dataset_name=name, filetype_suffix="array_record")
    in_order = sorted(range(len(staged)), key=lambda row: staged[row][:2])
    infos = []
    for split in SPLITS:
        rows = [row for row in in_order if split_of[staged[row][0]] == split]
        if not rows:
            continue
        shards = np.array_split(np.array(rows), -(-len(rows) // _WINDOWS_PER_SHARD))
        split_template = template.replace(split=split)
        for number, shard in enumerate(shards):
            with _record_writer(split_template.sharded_filepath(shard_index=number, num_shards=len(shards))) as write:
                for row in shard:
                    write(source[int(row)])
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard) for shard in shards],
                num_bytes=sum(staged[row][2] for row in rows),
                filename_template=split_template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=record_features(),
        split_infos=infos,
        filename_template=template,
        check_data=False,
        description=description or name,
    )


def _normalisation(directory: Path, channels: Sequence[str]) -> tuple[dict[str, Moments], int]:
    """The training split's moments by channel, and its number of time steps."""
    file, keys = directory / "normalisation.json", ("count", "mean", "sd")
    content = read_json(directory, file.name, dict)
    try:
        numbers = np.array([[content["channels"][name][key] for key in keys] for name in channels], np.float64)
        minutes = int(content["training_minutes"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file}: moments of a channel are missing or no numbers.") from None
    if not np.isfinite(numbers).all() or (numbers[:, [0, 2]] < 0).any():
        raise UserError(f"{file}: holds a count, mean or sd that no data can have.")
    return {name: Moments.from_sd(*row) for name, row in zip(channels, numbers.tolist(), strict=True)}, minutes
