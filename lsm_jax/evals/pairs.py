"""Pairs of a window and a task: which are asked, and how a batch of them looks to model and baselines."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.data.codec import Record
from lsm_jax.data.loader import Batch, WindowInfo, evaluation_batches
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import WindowSource
from lsm_jax.evals.baselines import Cells
from lsm_jax.evals.profiles import time_bins
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.tasks import Task, hidden_tokens

_RARE = 24
_MOST_SCORES = 2**24  # of one head; 64 MiB in float32, times heads and what a layer keeps of them


@dataclasses.dataclass(frozen=True)
class Windows:
    """Some windows on a model's channels.

    Attributes:
      values: z-scored; 0 where unobserved.
      person: a number per participant.
      identity: of the window, a hash of participant and start; it seeds the window's masks.
    """

    values: Float[np.ndarray, "w t c"]
    observed: Bool[np.ndarray, "w t c"]
    start_minute: Int[np.ndarray, " w"]
    weekday: Int[np.ndarray, " w"]
    person: Int[np.ndarray, " w"]
    identity: Int[np.ndarray, " w"]

    @property
    def bins(self) -> Int[np.ndarray, "w t"]:
        """The local time-of-day bin of every minute."""
        return time_bins(self.start_minute, self.values.shape[1])

    def part(self, rows: slice) -> Windows:
        """Some of the windows."""
        return Windows(**{name: array[rows] for name, array in vars(self).items()})

    def joined(self, more: Windows) -> Windows:
        """These windows and more."""
        return Windows(**{name: np.concatenate([array, vars(more)[name]]) for name, array in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A batch of b (window, task) pairs.

    Attributes:
      hidden: recorded tokens only, patches by channel groups.
      rows: what the model's batch is padded to, so that one program serves all batches of a size.
    """

    window: Int[np.ndarray, " b"]
    task: Int[np.ndarray, " b"]
    hidden: Bool[np.ndarray, "b p g"]
    rows: int


class ByPerson:
    """A source's windows in order of participant and start, whatever order they are stored in.

    Args:
      limit: at most this many windows, of people taken whole: the baseline made of a person's other days would be weak
        if those were left out. Participants are hashes, so the first of them are no particular people.
    """

    def __init__(self, source: WindowSource, limit: int | None = None) -> None:
        self._source = source
        names = np.array(source.participants)
        self._order = np.lexsort((source.start_seconds, names))
        if limit is not None:
            ends = np.cumsum(np.unique(names, return_counts=True)[1])
            self._order = self._order[: max(ends[ends <= limit], default=limit)]
        self.path, self.channels = source.path, source.channels
        self.participants = names[self._order].tolist()
        self.steps, self.start_seconds = source.steps[self._order], source.start_seconds[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def record(self, position: int) -> Record:
        """The record at a position of this order."""
        return self._source.record(int(self._order[position]))


def person_chunks(
    source: WindowSource, spec: DataSpec, number: Mapping[str, int], limit: int | None, size: int = 256
) -> Iterator[Windows]:
    """A split's windows in stacks of whole people, about `size` each: memory follows a stack, not the split.

    Args:
      number: of each participant.
      limit: see `ByPerson`.
    """
    held: Windows | None = None
    sorted_source = cast(WindowSource, ByPerson(source, limit))
    for batch, infos in evaluation_batches(sorted_source, spec, size):
        read = stack_windows(batch, infos, sorted_source, number)
        held = read if held is None else held.joined(read)
        # In order of participant all but the last are complete.
        complete = int(np.argmax(held.person == held.person[-1]))
        if complete:
            yield held.part(slice(0, complete))
            held = held.part(slice(complete, None))
    if held is not None:
        yield held


def task_pairs(
    windows: Windows, tasks: Sequence[Task], grid: TokenGrid, seed: int, batch_size: int, max_context_tokens: int
) -> Iterator[Pairs]:
    """Every pair of a window and a task that fits it, in batches of at most `batch_size`.

    A batch holds pairs of like numbers of visible and of hidden tokens, whatever their task: row lengths follow the
    fullest pair of a batch and every length is compiled, so mixed batches would compute, and compile, for nothing.

    Args:
      max_context_tokens: visible tokens of a window that the model reads at most; windows with more are alike.
    """
    # A token with any recorded cell, whatever rule the model has for partly recorded ones.
    recorded = grid.cells(windows.observed).any(axis=-1).reshape(-1, grid.patches, grid.groups)
    by_size: dict[tuple[int, int], list[tuple[int, int, np.ndarray]]] = {}
    for number, task in enumerate(tasks):
        for row, tokens in enumerate(recorded):
            hidden = hidden_tokens(task, tokens, grid.patch_minutes, window_rng(seed, task, windows, row))
            if hidden is not None:
                count = int(hidden.sum())
                size = _size_class(min(int(tokens.sum()) - count, max_context_tokens)), _size_class(count)
                by_size.setdefault(size, []).append((row, number, hidden))
    for (seen, asked), pairs in sorted(_without_rare(by_size).items()):
        # Scores of all queries and keys are kept by plain attention: long rows come in smaller batches.
        rows = max(1, min(batch_size, _MOST_SCORES // (seen * max(seen, asked))))
        for first in range(0, len(pairs), rows):
            chosen, numbers, hidden_of = zip(*pairs[first : first + rows], strict=True)
            yield Pairs(np.array(chosen), np.array(numbers), np.stack(hidden_of), rows)


def _size_class(tokens: int) -> int:
    """Doubling from 160, as the masked objective rounds row lengths."""
    return 160 << ((tokens - 1) // 160).bit_length()


def _without_rare(by_size: dict[tuple[int, int], list[Any]]) -> dict[tuple[int, int], list[Any]]:
    """Moves the few pairs of a rare size to the next larger one there is: a batch or two do not pay for compiling."""
    kept: dict[tuple[int, int], list[Any]] = {}
    for size in sorted(by_size):
        pairs = [*kept.get(size, []), *by_size[size]]
        larger = [other for other in by_size if other > size and other[1] >= size[1]]
        target = min(larger, key=lambda other: other[0] * max(other)) if larger and len(pairs) < _RARE else size
        kept.pop(size, None)
        kept[target] = [*kept.get(target, []), *pairs]
    return kept


def window_rng(seed: int, task: Task, windows: Windows, row: int) -> np.random.Generator:
    """The generator of one window's mask: a function of the seed, the task and the window alone."""
    named = zlib.crc32(f"{task.name} {task.setting}".encode())
    return np.random.default_rng([seed, named, int(windows.identity[row])])


def scored_cells(windows: Windows, pairs: Pairs, grid: TokenGrid) -> tuple[Bool[np.ndarray, "b t c"], Cells]:
    """What stays visible in each pair, and every recorded cell of its hidden tokens, to be scored."""
    observed = windows.observed[pairs.window]
    hidden = pairs.hidden.reshape(len(observed), grid.size, 1)
    covered = grid.windows(hidden.repeat(grid.cells_per_token, axis=2))
    return observed & ~covered, Cells(*np.nonzero(observed & covered))


def model_batch(
    windows: Windows, pairs: Pairs, visible: Bool[np.ndarray, "b t c"]
) -> tuple[dict[str, Array], Bool[Array, "s n"]]:
    """The batch and the hidden tokens an objective reconstructs, padded to `pairs.rows` rows.

    Hidden cells are zero in it: no mistake in a model can let it see what it is asked for.
    """
    rows = pairs.window
    batch = {
        "values": np.where(visible, windows.values[rows], 0).astype(np.float32),
        "observed": windows.observed[rows],
        "start_minute": windows.start_minute[rows],
        "weekday": windows.weekday[rows],
        "window_id": (windows.identity[rows] % 2**31).astype(np.int32),
    }
    padded = {key: jnp.asarray(_padded(array, pairs.rows)) for key, array in batch.items()}
    return padded, jnp.asarray(_padded(pairs.hidden.reshape(len(rows), -1), pairs.rows))


def stack_windows(
    batch: Batch, infos: Sequence[WindowInfo], source: WindowSource, number: Mapping[str, int]
) -> Windows:
    """The windows of an evaluation batch, without the rows that fill it up."""
    starts = source.start_seconds
    names = [f"{info.participant} {starts[info.index]} {info.offset}" for info in infos]
    kept = {key: batch[key][: len(infos)] for key in ("values", "observed", "start_minute", "weekday")}
    return Windows(
        **kept,
        person=np.array([number[info.participant] for info in infos], np.int64),
        identity=np.array([zlib.crc32(name.encode()) for name in names], np.int64),
    )


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
