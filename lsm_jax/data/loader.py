"""Batches: records decoded straight into z-scored arrays laid out on the model's channels.

Batch `i` is a pure function of (seed, i): the data order gives its windows, a hash its crops, and what they recorded
the rows they share. Grain runs that function ahead of the training loop, on threads or in processes, and keeps the
batches in order; the loader's state is the number of batches taken, and resuming at any state is a fresh start from
that number.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from lsm_jax.config import DataConfig
from lsm_jax.data.codec import Record
from lsm_jax.data.event_crops import mask_outside
from lsm_jax.data.order import DataOrder
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, mixture_weights
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.data.text import CaptionTokens
from lsm_jax.errors import UserError
from lsm_jax.windows import MINUTES_PER_DAY, Window, crop

Batch = dict[str, np.ndarray]
_ENDLESS = 2**48  # batches; a stream no run reaches the end of
_DAYS_TO_THURSDAY = 3  # 1970-01-01 was a Thursday, and weekday 0 is Monday


def _leave_interrupts(*_: int) -> None:
    """A terminal's Ctrl-C goes to all processes; the training loop hears it and ends the others when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """The endless stream of a split's batches, this host's rows of each.

    Args:
      config: the section `data`: `weights`, `workers` (processes; 0: threads of this one), `threads` of
        each, `prefetch` (batches ahead).
      datasets: those at `config.paths`, in that order.
      spec: channels, normalisation and window length of the batches.
      batch_size: rows of the global batch; `process_count` must divide it.
      position: global batches taken before, as `loader.position` said.
      captions: adds `text` to the batches, worded anew each epoch.
      balance: how windows are dealt to rows; None leaves them in the data order.

    Raises:
      UserError: no window in the split, or a batch size the hosts cannot share.
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
    ) -> None:
        if config.threads < 1 or config.prefetch < 1:
            raise UserError(f"data.threads={config.threads} and data.prefetch={config.prefetch} must be at least 1.")
        if batch_size < 1 or batch_size % process_count:
            raise UserError(f"batch size {batch_size} does not divide among {process_count} processes.")
        drawn = config.weights or (1.0,) * len(datasets)
        # Of a dataset of weight 0 nothing is drawn, and it may have nobody in this split.
        sources = [
            dataset.held_out(split) if weight else dataset.source(split)
            for dataset, weight in zip(datasets, drawn, strict=True)
        ]
        sizes = [len(source) for source in sources]
        order = DataOrder(seed, sizes, mixture_weights(config, sizes))
        share = batch_size // process_count
        rows = slice(process_index * share, (process_index + 1) * share)
        layouts = [_Layout(source, spec) for source in sources]
        self._batches = _Batches(
            layouts, spec, order, batch_size, rows, captions, balance or RowBalancer.for_batch(1, 1, 1)
        )
        self._workers, self._ahead = int(config.workers), int(config.prefetch)
        self._reading = grain.ReadOptions(int(config.threads), prefetch_buffer_size=self._ahead)
        self.restore(position)

    def restore(self, position: int) -> None:
        """Goes to the state after `position` global batches, forwards or back, at once."""
        self.close()
        stream: Any = grain.MapDataset.range(position, _ENDLESS).map(self._batches)
        stream = stream.to_iter_dataset(self._reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags, which only absl programs parse
            ahead = max(self._ahead // self._workers, 1)
            options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead)
            stream = stream.mp_prefetch(options, worker_init_fn=_leave_interrupts)
        self._stream = iter(stream)
        self._position = position

    @property
    def position(self) -> int:
        """Global batches taken: the one integer of state."""
        return self._position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._stream)
        self._position += 1
        return batch

    def close(self) -> None:
        """Stops the threads and processes that run ahead."""
        close = getattr(getattr(self, "_stream", None), "close", None)
        if close:
            close()


@dataclasses.dataclass(frozen=True)
class WindowInfo:
    """The window in a row of an evaluation batch.

    Attributes:
      index: position of the stored window in its source.
      participant: hashed id.
      offset: first step of the row within the stored window; not 0 where windows are longer than the batch's.
    """

    index: int
    participant: str
    offset: int
    _record: Record
    _layout: _Layout

    @property
    def window(self) -> Window:
        """The row as a window in natural units, from the record that was read for the batch."""
        return self._layout.window(self._record, self.offset)


def evaluation_batches(
    source: WindowSource,
    spec: DataSpec,
    batch_size: int,
    limit: int | None = None,
    captions: CaptionTokens | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[tuple[Batch, list[WindowInfo]]]:
    """A source's windows once, in fixed order; the last batch is filled up with all-missing windows.

    Windows longer than `spec.window_minutes` are cut into consecutive rows; a remainder is left out. `window_id` is the
    row's position in this order. Each stored window is read from disk once per row, never for `WindowInfo.window`.

    Args:
      limit: at most this many rows, spread evenly over the source; None takes all.
      captions: adds `text`, worded as in epoch 0.
      order: positions of the windows to take, in this order; None takes all as they are stored.

    Yields:
      (batch, infos): `infos` has an entry for every row that is a window, none for filling.
    """
    participants, steps = source.participants, source.steps
    rows = [
        (int(index), part * spec.window_minutes)
        for index in (range(len(source)) if order is None else order)
        for part in range(max(int(steps[index]) // spec.window_minutes, 1))
    ]
    if limit is not None and limit < len(rows):
        rows = [rows[position] for position in np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    layout = _Layout(source, spec)
    for first in range(0, len(rows), batch_size):
        infos = [
            WindowInfo(index, participants[index], offset, source.record(index), layout)
            for index, offset in rows[first : first + batch_size]
        ]
        batch = empty_batch(batch_size, spec, first + np.arange(batch_size))
        for row, info in enumerate(infos):
            layout.place(info._record, info.offset, batch, row)
        if captions:
            batch["text"] = np.zeros((batch_size, captions.length), np.int32)
            batch["text"][: len(infos)] = captions([info.window for info in infos], [0] * len(infos))
        yield batch, infos


def empty_batch(batch_size: int, spec: DataSpec, window_id: Int[np.ndarray, " b"]) -> Batch:
    """A batch of all-missing windows with the keys, shapes and types of every batch (docs/architecture.md)."""
    cells = (batch_size, spec.window_minutes, len(spec.channels))
    return {
        "values": np.zeros(cells, np.float32),
        "observed": np.zeros(cells, np.bool_),
        "start_minute": np.zeros(batch_size, np.int32),
        "weekday": np.zeros(batch_size, np.int32),
        "window_id": (window_id % 2**31).astype(np.int32),
    }


class _Layout:
    """How one dataset's channels lie on the model's, and what normalises them."""

    def __init__(self, source: WindowSource, spec: DataSpec) -> None:
        place = {name: row for row, name in enumerate(source.channels)}
        columns = [column for column, name in enumerate(spec.channels) if name in place]
        self.source = source
        self._known = [place[spec.channels[column]] for column in columns]
        self._steps = spec.window_minutes
        self._rows = _as_slice(self._known)
        self._columns = _as_slice(columns)
        self._mean, self._sd = spec.mean[columns], spec.sd[columns]

    def place(self, record: Record, offset: int, batch: Batch, row: int) -> None:
        """Decodes the record's steps from `offset` on, z-scored, into a row of the batch."""
        if record.minutes_per_step != 1:
            raise UserError(
                f"{self.source.path}: its windows have {record.minutes_per_step} minutes per step, batches have one."
            )
        codes = record.codes[self._rows, offset : offset + self._steps]
        observed = codes != 0
        # Channel by channel, where memory is contiguous; (value - mean) / sd in one product and one sum.
        values = codes * (record.step[self._rows] / self._sd)[:, None]
        values += ((record.offset[self._rows] - self._mean) / self._sd)[:, None]
        values *= observed
        steps = codes.shape[1]
        batch["values"][row, :steps][:, self._columns] = values.T
        batch["observed"][row, :steps][:, self._columns] = observed.T
        minute = record.local_minute + offset
        batch["start_minute"][row] = minute % MINUTES_PER_DAY
        batch["weekday"][row] = (minute // MINUTES_PER_DAY + _DAYS_TO_THURSDAY) % 7

    def recorded(self, record: Record, offset: int, first: int, last: int | None) -> int:
        """Recorded cells, of every fourth step, that `place` puts between two steps of its row."""
        end = offset + (self._steps if last is None else last)
        return int(np.count_nonzero(record.codes[self._rows, offset + first : end : 4]))

    def window(self, record: Record, offset: int) -> Window:
        """What `place` puts into a batch, as a window to speak of: the same steps, the channels the model knows."""
        return crop(record.window(self.source.channels), offset, self._steps, self._known)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A window as it will be shown.

    Attributes:
      offset: where the record is cropped.
      epoch: of its dataset.
      window: what captions speak of; None where there are none.
      stretch: first and one past the last minute shown of the crop; None: all.
    """

    layout: _Layout
    record: Record
    offset: int
    epoch: int
    window: Window | None
    stretch: tuple[int, int] | None

    def recorded(self) -> int:
        return self.layout.recorded(self.record, self.offset, *(self.stretch or (0, None)))


@dataclasses.dataclass(frozen=True)
class _Batches(grain.transforms.Map):
    """Batch number to this host's rows of that batch."""

    layouts: Sequence[_Layout]
    spec: DataSpec
    order: DataOrder
    batch_size: int
    rows: slice
    captions: CaptionTokens | None
    balance: RowBalancer

    def map(self, number: int) -> Batch:
        drawn, window_id = self._balanced(number)
        batch = empty_batch(len(drawn), self.spec, window_id)
        for row, each in enumerate(drawn):
            each.layout.place(each.record, each.offset, batch, row)
            if each.stretch:
                _hide_all_but(batch, row, *each.stretch)
        if self.captions:
            spoken_of = [
                mask_outside(each.window, *each.stretch) if each.stretch else each.window
                for each in drawn
                if each.window is not None
            ]
            batch["text"] = self.captions(spoken_of, [each.epoch for each in drawn])
        return batch

    def _balanced(self, number: int) -> tuple[list[_Drawn], Int[np.ndarray, " b"]]:
        """This host's windows in the order of their rows, and the numbers that seed their masks.

        Groups that lie partly on this host are read whole, so that rows are the same whatever the number of hosts.
        """
        size = self.balance.group_size
        first, last = self.rows.start // size * size, -(-self.rows.stop // size) * size
        begin = number * self.batch_size
        drawn = self._drawn(begin + np.arange(first, last))
        if size > 1:
            recorded = np.array([each.recorded() for each in drawn]).reshape(-1, size)
            groups = np.arange(0, len(drawn), size)[:, None]
            drawn = [drawn[place] for place in (groups + self.balance.assign(recorded)).reshape(-1)]
        window_id = begin + np.arange(first, last, size)[:, None] + self.balance.window_ids
        mine = slice(self.rows.start - first, self.rows.stop - first)
        return drawn[mine], window_id.reshape(-1)[mine]

    def _drawn(self, positions: Int[np.ndarray, " n"]) -> list[_Drawn]:
        datasets, windows = self.order.lookup(positions)
        layouts = [self.layouts[dataset] for dataset in datasets]
        records = [layout.source.record(int(window)) for layout, window in zip(layouts, windows, strict=True)]
        spare = np.array([record.codes.shape[1] - self.spec.window_minutes for record in records])
        offsets = self.order.uniform(positions, np.maximum(spare, 0) + 1).tolist()
        epochs = self.order.epochs(positions).tolist()
        return [self._shown(*each) for each in zip(layouts, records, offsets, epochs, strict=True)]

    def _shown(self, layout: _Layout, record: Record, offset: int, epoch: int) -> _Drawn:
        if not self.captions:
            return _Drawn(layout, record, offset, epoch, window=None, stretch=None)
        window = layout.window(record, offset)
        return _Drawn(layout, record, offset, epoch, window, self.captions.event_crop(window, epoch))


def _hide_all_but(batch: Batch, row: int, first: int, last: int) -> None:
    for part in (batch["values"], batch["observed"]):
        part[row, :first] = part[row, last:] = 0


def _as_slice(places: list[int]) -> list[int] | slice:
    """The same places as a slice where they are consecutive, since NumPy copies much faster through one."""
    if places and places == list(range(places[0], places[-1] + 1)):
        return slice(places[0], places[-1] + 1)
    return places
