"""Inference on packed rows (`tokens.inference_rows`), spread over all devices of this process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float

from lsm_jax.objectives.pooling import TokenEmbeddings
from lsm_jax.tokens.inference_rows import MAX_WINDOWS, PackedRows, packed_rows

_AXIS = "rows"
# Rows of a device in a call: a CPU's caches hold the activations of one, an accelerator needs many to be busy.
_ROWS_PER_DEVICE = {"cpu": 1}
_ROWS_PER_ACCELERATOR = 16

_PADDED_TO = 128  # windows

Calls: TypeAlias = Iterator[tuple[PackedRows, Any]]
# (static arguments..., parameters, batch of R x W windows, rows...) -> an array
Compute: TypeAlias = Callable[..., Any]


def on_packed_rows(
    compute: Compute,
    static: tuple[Any, ...],
    params: Any,
    batch: Mapping[str, np.ndarray],
    selected: Sequence[Bool[np.ndarray, "b n"]],
    max_windows: int = MAX_WINDOWS,
    carried: Float[np.ndarray, "b s d"] | None = None,
) -> Calls:
    """Calls `compute` on the windows of a batch, packed into rows.

    Args:
      compute: a bound method, pure; its result has rows, or the windows of rows, along the first axis.
      static: its first arguments, which are compiled in.
      selected: the tokens that are read, for each kind of rows.
      max_windows: of a row.
      carried: vectors of the tokens `selected[0]` of each window, which `compute` gets in their rows, last.

    Yields:
      The rows and the result of `compute` for them, in the order in which they were computed.
    """
    devices = jax.local_devices()
    params = jax.device_put(params, NamedSharding(_mesh(), PartitionSpec()))
    tokens = np.stack([each.sum(axis=1) for each in selected], axis=1)
    rows_per_device = _ROWS_PER_DEVICE.get(devices[0].platform, _ROWS_PER_ACCELERATOR)
    pending: list[tuple[PackedRows, Any]] = []
    size = selected[0].shape[1]
    for packed in packed_rows(tokens, size, rows_per_device * len(devices), len(devices), max_windows):
        rows: list[Any] = [packed.rows_of(each, kind) for kind, each in enumerate(selected)]
        if carried is not None:
            rows.append(packed.carried(carried, tokens[:, 0]))
        output = _program(compute, static)(params, _taken(batch, packed.windows), rows)
        pending.append((packed, output))
        # The next rows are prepared while devices compute these.
        if len(pending) > 1:
            yield pending.pop(0)
    yield from pending


def by_window(calls: Calls, count: int) -> np.ndarray:
    """The outputs of `on_packed_rows`, one array by window, in the order of the batch.

    Args:
      count: windows of the batch.
    """
    result: np.ndarray | None = None
    for packed, output in calls:
        computed, window = np.asarray(output), packed.windows.reshape(-1)
        if result is None:
            result = np.zeros((count, *computed.shape[1:]), computed.dtype)
        result[window[window >= 0]] = computed[window >= 0]
    assert result is not None  # a batch has at least one window
    return result


def tokens_by_window(calls: Calls, selected: Bool[np.ndarray, "b n"]) -> Any:
    """Encoded rows as `TokenEmbeddings`, one window after the other in the order of the batch."""
    counts = selected.sum(axis=1)
    shape = len(selected), max(int(counts.max(initial=0)), 1)
    vectors: np.ndarray | None = None
    token, real = np.zeros(shape, np.int32), np.arange(shape[1]) < counts[:, None]
    token[real] = np.nonzero(selected)[1]
    for packed, output in calls:
        encoded = np.asarray(output)
        if vectors is None:
            vectors = np.zeros((*shape, encoded.shape[2]), np.float32)
        for row, windows in zip(encoded, packed.windows, strict=True):
            end = 0
            for window in windows[windows >= 0]:
                start, end = end, end + int(counts[window])
                vectors[window, : counts[window]] = row[start:end]
    return TokenEmbeddings(vectors, token, real)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (_AXIS,))


@functools.lru_cache(maxsize=64)
def _program(compute: Compute, static: tuple[Any, ...]) -> Callable[..., Any]:
    """`compute`, compiled for rows that are spread over the devices."""

    def call(params: Any, batch: Mapping[str, Any], rows: Sequence[Any]) -> Any:
        return compute(*static, params, batch, *rows)

    by_row = PartitionSpec(_AXIS)
    return jax.jit(
        jax.shard_map(call, mesh=_mesh(), in_specs=(PartitionSpec(), by_row, by_row), out_specs=by_row, check_vma=False)
    )


def _taken(batch: Mapping[str, np.ndarray], windows: np.ndarray) -> dict[str, np.ndarray]:
    """The batch's windows in the order of the rows' places; zeros where there is none."""
    place = windows.reshape(-1)
    present = place >= 0
    taken = {}
    for name, array in batch.items():
        part = np.zeros((len(place), *array.shape[1:]), array.dtype)
        part[present] = array[place[present]]
        taken[name] = part
    return taken


def padded(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The windows with zeros behind them, up to a multiple.

    Evaluations have batches of many sizes, and what JAX computes for a batch would be compiled for each.
    """
    return {
        name: np.pad(values, [(0, -len(values) % _PADDED_TO)] + [(0, 0)] * (values.ndim - 1))
        for name, values in batch.items()
    }
