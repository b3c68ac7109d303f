"""Datasets on disk: written whole or not at all, opened as if their files were hostile.

A dataset is a folder that `tfds.builder_from_directory` opens: ArrayRecord shards of the splits `train`,
`validation` and `test`, `dataset_info.json`, `features.json`. Beside them lie `channels.json`, `normalisation.json`
(the training split's moments), `data_card.json` and `index.parquet` (a row per window, so that who is in a split is
known without decoding it).

Splits are by participant: all are ranked by a keyed hash of their id, the first 20 % are the test split, the next
10 % the validation split, the rest is for training. Ranks rather than thresholds, because a study of twelve people
must have its two in the test split and not a number that chance decides. The price: adding people may move others
from split to split, so a grown study is a new dataset for new runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from lsm_jax.channels import channels as registered
from lsm_jax.data.card import DatasetSummary, Description
from lsm_jax.data.codec import Record, RecordWriter, record_features
from lsm_jax.data.shards import NAME, SPLITS, Records, list_shards, read_index, read_info, read_json
from lsm_jax.errors import UserError
from lsm_jax.windows import Window

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
_WINDOWS_PER_SHARD = 4096
_WRITER_OPTIONS = "group_size:1,zstd:1"  # random access; higher levels win 1 % for twice the time


def assign_splits(participants: Iterable[str], seed: int = 0) -> dict[str, str]:
    """The split of every participant, as the module's head describes it; a function of the set and the seed.

    Two people fill train and test, three or more all splits; a single one is for training.
    """

    def rank(participant: str) -> bytes:
        return hashlib.blake2b(participant.encode(), key=b"lsm-split-%d" % seed, digest_size=16).digest()

    ranked = sorted({*participants}, key=rank)
    test = max(round(_TEST_SHARE * len(ranked)), int(len(ranked) >= 2))
    validation = max(round(_VALIDATION_SHARE * len(ranked)), int(len(ranked) >= 3))
    splits = ["test"] * test + ["validation"] * validation
    splits += ["train"] * (len(ranked) - len(splits))
    return dict(zip(ranked, splits, strict=True))


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
) -> DatasetSummary:
    """Writes windows, in any order, as a dataset; the same windows and seed give the same bytes.

    Streams: memory holds one window and a few numbers per window written. The windows are staged in a temporary
    folder beside `out`, shared out to splits once every participant is known, and moved to `out` in one rename.

    Args:
      out: the dataset's folder; must not exist, unless it holds a dataset and `overwrite` is set.
      name: a TFDS name: letters, digits, underscores.
      channels: canonical names of the dataset's columns; a channel a window lacks is unobserved in it.
      progress: called with the number of windows taken so far.

    Raises:
      UserError: no window, a bad name, an unknown channel, or `out` is in the way.
    """
    registered(channels)
    if not NAME.fullmatch(name):
        raise UserError(f"dataset name {name!r}: use lower-case letters, digits and underscores, a letter first.")
    check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        staged = _stage(staging / "staged", channels, windows, progress)
        dataset = staging / "dataset"
        dataset.mkdir(mode=0o755)
        _write_splits(dataset, name, staging / "staged", staged, seed, description)
        summary = finish_dataset(dataset, channels)
        if out.exists():
            out.rename(staging / "replaced")
        dataset.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return dataclasses.replace(summary, path=out)


def finish_dataset(directory: Path, channels: Sequence[str]) -> DatasetSummary:
    """Writes what lies beside the shards of a TFDS dataset of records (`codec.record_features`).

    One pass over the records as stored, so that index, moments and card describe exactly what a run will read.
    Whoever writes shards another way (TFDS on Beam) calls this afterwards.
    """
    info = read_info(directory)
    description = Description(info["name"], info.get("description", ""), tuple(channels))
    for split, shards in list_shards(directory, info).items():
        for window in Records(directory, shards, len(channels)).windows(channels):
            description.add(split, window)
    (directory / "channels.json").write_text(json.dumps(list(channels), indent=1))
    (directory / "normalisation.json").write_text(json.dumps(description.normalisation(), indent=1))
    (directory / "data_card.json").write_text(json.dumps(description.card(), indent=1))
    description.index().write_parquet(directory / "index.parquet")
    return description.summary(directory)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and population standard deviation over `count` observed cells; all 0 where nothing was observed."""

    mean: float
    sd: float
    count: int


class WindowSource:
    """Random access to the windows of one split."""

    def __init__(self, path: Path, records: Records, index: pl.DataFrame, channels: tuple[str, ...]) -> None:
        self.path = path
        self._records = records
        self._index = index
        self.channels = channels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> Window:
        return self._records.window(position, self.channels)

    def record(self, position: int) -> Record:
        """The record at a position, cells still codes: what the loader decodes straight into its batch."""
        return self._records.record(position)

    @property
    def participants(self) -> list[str]:
        """The participant of every window, in order."""
        return self._index["participant"].to_list()

    @property
    def steps(self) -> np.ndarray:
        """int64[len]: time steps of every window."""
        return self._index["steps"].to_numpy()

    @property
    def observed(self) -> np.ndarray:
        """int64[len]: observed cells of every window."""
        return self._index["observed"].to_numpy()

    @property
    def start_seconds(self) -> np.ndarray:
        """int64[len]: start of every window, seconds since the Unix epoch, UTC."""
        return self._index["start_seconds"].to_numpy()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      normalisation: moments of the training split by channel.
      training_minutes: time steps of the training split, so that a channel's observed share is `count` over them.
      card: the content of `data_card.json`.
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    normalisation: Mapping[str, Moments]
    training_minutes: int
    card: Mapping[str, Any]
    _shards: Mapping[str, Mapping[str, int]]
    _index: pl.DataFrame

    def source(self, split: str) -> WindowSource:
        """The windows of a split; one without windows has length 0.

        Raises:
          UserError: no such split, or a shard is damaged.
        """
        if split not in SPLITS:
            raise UserError(f"dataset {self.name} has no split {split!r}; splits are {', '.join(SPLITS)}.")
        rows = self._index.filter(pl.col("split") == split)
        records = Records(self.path, self._shards.get(split, {}), len(self.channels))
        if len(records) != len(rows):
            raise UserError(
                f"{self.path}: index.parquet lists {len(rows)} windows of split {split!r}, the shards hold "
                f"{len(records)}. The dataset is partial or mixed; write it again."
            )
        return WindowSource(self.path, records, rows, self.channels)

    def held_out(self, split: str) -> WindowSource:
        """The windows of a split of people never trained on; UserError where there is no such person."""
        source = self.source(split)
        if not len(source):
            raise UserError(
                f"dataset {self.name} ({self.path}) has no person in its {split} split: it holds "
                f"{self.card.get('people', 'too few')} people, and splits are by person. Ingest at least three people."
            )
        return source


def open_dataset(path: Path | str) -> Dataset:
    """Opens a dataset for reading.

    Raises:
      UserError: not a dataset, or a partial, damaged or hostile one; names the file and the fix.
    """
    directory = Path(path)
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


@dataclasses.dataclass(frozen=True)
class _Staged:
    """Where every staged window lies: its place in the staging file, its participant and start."""

    participants: list[str]
    start_seconds: list[int]
    sizes: list[int]


def _stage(
    file: Path, channels: Sequence[str], windows: Iterable[Window], progress: Callable[[int], None] | None
) -> _Staged:
    known: dict[str, str] = {}
    staged = _Staged([], [], [])
    encoder = RecordWriter(channels)
    writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)
    try:
        for count, window in enumerate(windows, start=1):
            record = encoder.record(window)
            writer.write(record)
            # One string object per person, however many windows: memory follows people, not windows.
            staged.participants.append(known.setdefault(window.participant, window.participant))
            staged.start_seconds.append(int(window.start.timestamp()))
            staged.sizes.append(len(record))
            if progress:
                progress(count)
    finally:
        writer.close()
    if not staged.sizes:
        raise UserError("no windows to write: the source holds no recorded minute. Check the report for refused rows.")
    return staged


def _write_splits(directory: Path, name: str, file: Path, staged: _Staged, seed: int, description: str) -> None:
    """Shares staged records out to shards, each split in order of participant and start."""
    split_of = assign_splits(staged.participants, seed)
    source = ArrayRecordDataSource(str(file))
    template = tfds.core.ShardedFileTemplate(data_dir=directory, dataset_name=name, filetype_suffix="array_record")
    infos = []
    for split in SPLITS:
        rows = [row for row, participant in enumerate(staged.participants) if split_of[participant] == split]
        rows.sort(key=lambda row: (staged.participants[row], staged.start_seconds[row], row))
        if not rows:
            continue
        shards = np.array_split(np.array(rows), -(-len(rows) // _WINDOWS_PER_SHARD))
        split_template = template.replace(split=split)
        for number, shard in enumerate(shards):
            writer = ArrayRecordWriter(
                str(split_template.sharded_filepath(shard_index=number, num_shards=len(shards))), _WRITER_OPTIONS
            )
            for row in shard:
                writer.write(source[int(row)])
            writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard) for shard in shards],
                num_bytes=sum(staged.sizes[row] for row in rows),
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


def check_free(out: Path, overwrite: bool) -> None:
    """UserError unless a dataset may be written to `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "channels.json").is_file():
        raise UserError(f"{out} exists and is not a dataset; choose another --out.")
    if not overwrite:
        raise UserError(f"{out} holds a dataset already; pass --overwrite to replace it or choose another --out.")


def _normalisation(directory: Path, channels: Sequence[str]) -> tuple[dict[str, Moments], int]:
    content = read_json(directory, "normalisation.json", dict)
    try:
        moments = {name: _moments(content["channels"][name]) for name in channels}
        minutes = int(content["training_minutes"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{directory / 'normalisation.json'}: moments of a channel are missing or no numbers."
        ) from None
    if not all(np.isfinite([m.mean, m.sd]).all() and m.sd >= 0 and m.count >= 0 for m in moments.values()):
        raise UserError(f"{directory / 'normalisation.json'}: holds a mean or sd that no data can have.")
    return moments, minutes


def _moments(content: Mapping[str, Any]) -> Moments:
    return Moments(mean=float(content["mean"]), sd=float(content["sd"]), count=int(content["count"]))
