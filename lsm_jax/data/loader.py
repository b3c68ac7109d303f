"""Batches of z-scored windows on the model's channels, decoded directly from stored records.

Batch `i` is a pure function of (seed, i). The data order chooses its windows, a hash chooses where they are cropped,
and their numbers of observed cells decide which windows share a row. A corrupt record is replaced by another window of
its dataset, which a hash of its position chooses. Grain computes batches ahead of the training loop, in threads or
processes, and returns them in order. The loader's state is the number of batches taken so far, so a loader that starts
at that number continues the stream exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from lsm_jax.config import DataConfig
from lsm_jax.data.codec import Record, decode_cells
from lsm_jax.data.event_crops import mask_outside
from lsm_jax.data.faults import Note, ReadFaults, RecordError
from lsm_jax.data.order import CROP_STREAM, PARTNER_STREAM, DataOrder
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, mixture_weights
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.data.targets import Targets
from lsm_jax.data.text import CaptionTokens
from lsm_jax.errors import RunError, UserError
from lsm_jax.windows import MINUTES_PER_DAY, Window, crop

Batch = dict[str, np.ndarray]
_NUM_BATCHES = 2**48  # of a stream: more than any run takes
_MAX_REPLACEMENTS = 1000  # tries at a position; only a dataset without a readable record needs so many
_WEEKDAY_OF_EPOCH = 3  # 1970-01-01 was a Thursday, and Monday is 0


def _ignore_interrupts(*_: int) -> None:
    """Makes a worker ignore Ctrl-C, which a terminal sends to all processes. The training loop stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """The endless stream of a split's batches. Each host gets its own rows of every global batch.

    Args:
      config: the section `data`: `weights`, `workers` (processes; 0 uses threads of this process), `threads` of each,
        `prefetch` (batches computed ahead).
      datasets: the datasets at `config.paths`, in that order. The first one's `faults` takes note for all.
      spec: channels, normalisation and window length of the batches.
      batch_size: rows of the global batch; `process_count` must divide it.
      position: number of global batches taken before, as returned by `loader.position`.
      captions: adds `text` to the batches, with new wording each epoch.
      targets: adds `spans` and `targets` to the batches.
      person_pairs: every second position holds another window of the same person as the one before (the same window
        where a person has one only), and batches have `person`.
      balance: assigns windows to rows; None keeps the data order.

    Raises:
      UserError: the split has no window, or hosts cannot share the batch evenly.
    """

    def __init__(
        self,
        config: DataConfig,
        datasets: Sequence[Dataset],
        spec: DataSpec,
        split: str,
        seed: int,
        batch_size: int,
        position: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        captions: CaptionTokens | None = None,
        balance: RowBalancer | None = None,
        targets: Targets | None = None,
        person_pairs: bool = False,
    ) -> None:
        if config.threads < 1 or config.prefetch < 1:
            raise UserError(f"data.threads={config.threads} and data.prefetch={config.prefetch} must be at least 1.")
        if batch_size < 1 or batch_size % process_count:
            raise UserError(f"batch size {batch_size} does not divide among {process_count} processes.")
        weights = config.weights or (1.0,) * len(datasets)
        # A dataset of weight 0 may have nobody in this split.
        sources = [
            dataset.nonempty_source(split) if weight else dataset.source(split)
            for dataset, weight in zip(datasets, weights, strict=True)
        ]
        self._faults = datasets[0].faults
        for source in sources:
            source.faults = self._faults
        sizes = [len(source) for source in sources]
        share = batch_size // process_count
        self._batches = _BatchReader(
            layouts=[_ChannelLayout(source, spec) for source in sources],
            spec=spec,
            faults=self._faults,
            order=DataOrder(seed, sizes, mixture_weights(config, sizes)),
            batch_size=batch_size,
            host_rows=slice(process_index * share, (process_index + 1) * share),
            captions=captions,
            targets=targets,
            first_person=np.cumsum([0] + [source.num_people for source in sources]) if person_pairs else None,
            balance=balance or RowBalancer.for_batch(1, 1, 1),
        )
        self._workers, self._prefetch = int(config.workers), int(config.prefetch)
        self._read_options = grain.ReadOptions(int(config.threads), prefetch_buffer_size=self._prefetch)
        self.restore(position)

    def restore(self, position: int) -> None:
        """Continues after `position` global batches, earlier or later than now."""
        self.close()
        stream: Any = grain.MapDataset.range(position, _NUM_BATCHES).map(self._batches)
        stream = stream.to_iter_dataset(self._read_options)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags, which only absl programs parse
            buffer_size = max(self._prefetch // self._workers, 1)
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=buffer_size)
            stream = stream.mp_prefetch(options, worker_init_fn=_ignore_interrupts)
        self._stream = iter(stream)
        self._position = position

    @property
    def position(self) -> int:
        """Number of global batches taken: the loader's whole state."""
        return self._position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; RunError if more than `data.max_corrupt` records are corrupt."""
        try:
            batch, notes = next(self._stream)
        except RunError:
            self._faults.handle(())  # lists the records that the error names
            raise
        self._faults.handle(notes)
        self._position += 1
        return batch

    def close(self) -> None:
        """Stops the threads and processes that compute batches ahead."""
        close = getattr(getattr(self, "_stream", None), "close", None)
        if close:
            close()


@dataclasses.dataclass(frozen=True, eq=False)
class WindowInfo:
    """The window in a row of a batch: a stored window, cropped where it is longer than the batch's.

    Attributes:
      index: position of the stored window in its source.
      offset: first step of the row within the stored window.
    """

    index: int
    offset: int
    _layout: _ChannelLayout
    _record: Record

    @property
    def participant(self) -> str:
        """Hashed id."""
        return self._record.participant

    @functools.cached_property
    def window(self) -> Window:
        """The row as a window in natural units, with those of its channels that the batch has."""
        layout = self._layout
        whole = layout.source.window(self.index, self._record)
        return crop(whole, self.offset, layout.steps, layout.channels)

    def decode_into(self, batch: Batch, row: int, interval: tuple[int, int] | None = None) -> None:
        """Decodes the window, z-scored, into a row of the batch. Steps outside `interval` stay unobserved."""
        layout, record = self._layout, self._record
        if record.minutes_per_step != 1:
            raise UserError(
                f"{layout.source.path}: its windows have {record.minutes_per_step} minutes per step, batches have one."
            )
        # Z-scores come from the codes and not from `window`: this costs the same and rounds once instead of twice.
        step, offset = record.step[layout.rows] / layout.sd, (record.offset[layout.rows] - layout.mean) / layout.sd
        values, observed = decode_cells(self._codes(interval), step, offset)
        first = interval[0] if interval else 0
        steps = slice(first, first + values.shape[1])
        batch["values"][row, steps][:, layout.columns] = values.T
        batch["observed"][row, steps][:, layout.columns] = observed.T
        minute = record.local_minute + self.offset
        batch["start_minute"][row] = minute % MINUTES_PER_DAY
        batch["weekday"][row] = (minute // MINUTES_PER_DAY + _WEEKDAY_OF_EPOCH) % 7

    def size(self, interval: tuple[int, int] | None = None) -> int:
        """Number of cells that `decode_into` marks observed, counted at every fourth step."""
        return int(np.count_nonzero(self._codes(interval)[:, ::4]))

    def _codes(self, interval: tuple[int, int] | None) -> np.ndarray:
        first, last = interval or (0, self._layout.steps)
        return self._record.codes[self._layout.rows, self.offset + first : self.offset + last]


def evaluation_batches(
    source: WindowSource,
    spec: DataSpec,
    batch_size: int,
    limit: int | None = None,
    captions: CaptionTokens | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[tuple[Batch, list[WindowInfo]]]:
    """All windows of a source once, in a fixed order. All-missing windows fill the last batch.

    Windows longer than `spec.window_minutes` are cut into consecutive rows, without the remainder. `window_id` is the
    row's position in this order. Each stored window is read from disk once per row, never for `WindowInfo.window`.

    A corrupt record is reported and left out: its batch has a row less, and all other rows keep theirs.

    Args:
      limit: at most this many rows, spread evenly over the source; None takes all.
      captions: adds `text`, worded as in epoch 0.
      order: positions of the windows to take, in this order; None takes all as they are stored.

    Yields:
      (batch, infos): one info for every row that holds a window; later rows are padding.
    """
    steps = source.steps
    rows = [
        (int(index), part * spec.window_minutes)
        for index in (range(len(source)) if order is None else order)
        for part in range(max(int(steps[index]) // spec.window_minutes, 1))
    ]
    if limit is not None and limit < len(rows):
        rows = [rows[position] for position in np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    layout = _ChannelLayout(source, spec)
    for first in range(0, len(rows), batch_size):
        infos, ids, left_out = [], [], []
        for number, (index, offset) in enumerate(rows[first : first + batch_size], first):
            try:
                infos.append(WindowInfo(index, offset, layout, source.record(index)))
                ids.append(number)
            except RecordError:
                left_out.append(number)
        source.faults.report_pending()
        if not infos:
            continue
        ids += [*left_out, *range(first + len(ids) + len(left_out), first + batch_size)]
        batch = empty_batch(batch_size, spec, np.array(ids))
        for row, info in enumerate(infos):
            info.decode_into(batch, row)
        if captions:
            batch["text"] = np.zeros((batch_size, captions.length), np.int32)
            batch["text"][: len(infos)] = captions([info.window for info in infos], [0] * len(infos))
        yield batch, infos


def empty_batch(batch_size: int, spec: DataSpec, window_id: Int[np.ndarray, " b"]) -> Batch:
    """A batch of all-missing windows with the keys, shapes and types of every batch (docs/reference/datasets.md)."""
    cells = (batch_size, spec.window_minutes, len(spec.channels))
    return {
        "values": np.zeros(cells, np.float32),
        "observed": np.zeros(cells, np.bool_),
        "start_minute": np.zeros(batch_size, np.int32),
        "weekday": np.zeros(batch_size, np.int32),
        "window_id": (window_id % 2**31).astype(np.int32),
    }


class _ChannelLayout:
    """Which channels of a dataset go to which columns of a batch, and their normalisation.

    Attributes:
      steps: steps of a batch's windows.
      channels: the shared channels as indices into the dataset's list, as a list and as `rows` to index codes with.
      columns: the same channels as columns of the batch.
      mean, sd: float32, of the shared channels.
    """

    def __init__(self, source: WindowSource, spec: DataSpec) -> None:
        index = {name: row for row, name in enumerate(source.channels)}
        columns = [column for column, name in enumerate(spec.channels) if name in index]
        self.source, self.steps = source, spec.window_minutes
        self.channels = [index[spec.channels[column]] for column in columns]
        self.rows, self.columns = _as_slice(self.channels), _as_slice(columns)
        self.mean, self.sd = spec.mean[columns], spec.sd[columns]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """A window of a training batch, in an epoch of its dataset.

    Attributes:
      dataset: number of its dataset.
      interval: its event crop, None for all of it.
    """

    info: WindowInfo
    epoch: int
    dataset: int
    interval: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class _BatchReader(grain.transforms.Map):
    """Maps the number of a batch to this host's rows of it, and to the faults met while reading them.

    Attributes:
      first_person: number of the first person of each dataset; None: windows do not come in pairs of one person.
    """

    layouts: Sequence[_ChannelLayout]
    spec: DataSpec
    faults: ReadFaults
    order: DataOrder
    batch_size: int
    host_rows: slice
    captions: CaptionTokens | None
    targets: Targets | None
    first_person: Int[np.ndarray, " d"] | None
    balance: RowBalancer

    def map(self, number: int) -> tuple[Batch, tuple[Note, ...]]:
        samples, window_id = self._balanced(number)
        batch = empty_batch(len(samples), self.spec, window_id)
        for row, sample in enumerate(samples):
            sample.info.decode_into(batch, row, sample.interval)
        if self.first_person is not None:
            own = [self.layouts[sample.dataset].source.people[sample.info.index] for sample in samples]
            batch["person"] = (self.first_person[[sample.dataset for sample in samples]] + own).astype(np.int32)
        if self.captions or self.targets:
            windows = [
                mask_outside(sample.info.window, *sample.interval) if sample.interval else sample.info.window
                for sample in samples
            ]
            if self.captions:
                batch["text"] = self.captions(windows, [sample.epoch for sample in samples])
            if self.targets:
                batch |= self.targets(windows)
        return batch, self.faults.drain()

    def _balanced(self, number: int) -> tuple[list[_Sample], Int[np.ndarray, " b"]]:
        """This host's windows in the order of its rows, and their ids, which seed their masks.

        A group that lies partly on this host is read whole, so that rows do not depend on the number of hosts.
        """
        size, rows = self.balance.group_size, self.host_rows
        first, last = rows.start // size * size, -(-rows.stop // size) * size
        begin = number * self.batch_size
        samples = self._samples(begin + np.arange(first, last))
        if size > 1:
            observed = np.array([sample.info.size(sample.interval) for sample in samples]).reshape(-1, size)
            groups = np.arange(0, len(samples), size)[:, None]
            samples = [samples[index] for index in (groups + self.balance.assign(observed)).reshape(-1)]
        window_id = begin + np.arange(first, last, size)[:, None] + self.balance.window_ids
        own = slice(rows.start - first, rows.stop - first)
        return samples[own], window_id.reshape(-1)[own]

    def _samples(self, positions: Int[np.ndarray, " n"]) -> list[_Sample]:
        """The windows at these positions of the data order, cropped."""
        # The two positions of a pair share a place in the data order.
        in_pairs = self.first_person is not None
        places = positions // 2 if in_pairs else positions
        datasets, windows = self.order.lookup(places)
        epochs = self.order.epochs(places).tolist()
        if in_pairs:
            self._take_partners(positions, datasets, windows)
        layouts = [self.layouts[dataset] for dataset in datasets]
        wanted = zip(positions.tolist(), datasets.tolist(), windows.tolist(), strict=True)
        indices, records = zip(*(self._readable(*each) for each in wanted), strict=True)
        spare = np.array([record.codes.shape[1] - self.spec.window_minutes for record in records])
        offsets = self.order.uniform(positions, np.maximum(spare, 0) + 1, CROP_STREAM).tolist()
        infos = [WindowInfo(*parts) for parts in zip(indices, offsets, layouts, records, strict=True)]
        return [
            _Sample(info, epoch, dataset, self.captions.event_crop(info.window, epoch) if self.captions else None)
            for info, epoch, dataset in zip(infos, epochs, datasets.tolist(), strict=True)
        ]

    def _take_partners(
        self, positions: Int[np.ndarray, " n"], datasets: Int[np.ndarray, " n"], windows: Int[np.ndarray, " n"]
    ) -> None:
        """Replaces the window at each odd position by another one of its person, in place."""
        for place in np.flatnonzero(positions % 2):
            own = self.layouts[datasets[place]].source.of_same_person(windows[place])
            others = own[own != windows[place]]
            if len(others):
                draw = self.order.uniform(positions[place : place + 1], np.array([len(others)]), PARTNER_STREAM)
                windows[place] = others[draw[0]]

    def _readable(self, position: int, dataset: int, index: int) -> tuple[int, Record]:
        """The record of a window, or of the one that replaces it at this position because it is corrupt."""
        source = self.layouts[dataset].source
        for tries in range(_MAX_REPLACEMENTS):
            try:
                return index, source.record(index)
            except RecordError:
                index = self.order.replacement(position, dataset, tries)
        raise RunError(f"{source.path}: no readable record was found. Restore its shards, or write the dataset again.")


def _as_slice(indices: list[int]) -> list[int] | slice:
    """The same indices as a slice where they are consecutive: NumPy copies much faster through one."""
    if indices and indices == list(range(indices[0], indices[-1] + 1)):
        return slice(indices[0], indices[-1] + 1)
    return indices
