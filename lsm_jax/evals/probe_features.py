"""Features of spans of windows: embeddings of encoders, engineered statistics, and profiles over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import RunError
from lsm_jax.evals.days import QUANTILES
from lsm_jax.evals.probe_tasks import Task
from lsm_jax.objectives.base import NetworkObjective
from lsm_jax.objectives.pooling import TokenEmbeddings, pool
from lsm_jax.objectives.supervised import Supervised
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.row_lengths import bucket_length

ENGINEERED, PROFILE = "engineered", "profile"
_BINS = 24  # of a profile: hours of a day
_MIN_PROFILE_MINUTES = 120
_BLOCKS = 6  # of a day: 4 hours each
_AROUND = 60  # minutes before and after a span
_DAY = 1440

Batches = Iterator[tuple[Batch, list[WindowInfo]]]


def hide(batch: Batch, spec: DataSpec, hidden: Sequence[str]) -> Batch:
    """The batch without some channels."""
    columns = [column for column, name in enumerate(spec.channels) if name in hidden]
    observed = batch["observed"].copy()
    observed[:, :, columns] = False
    return {**batch, "observed": observed, "values": np.where(observed, batch["values"], 0)}


def span_features(
    batches: Batches,
    spans: Int[np.ndarray, "m 3"],
    objective: NetworkObjective,
    encoders: Mapping[str, Any],
    pooling: str,
    spec: DataSpec,
    hidden: Sequence[str],
) -> dict[str, Float[np.ndarray, "m f"]]:
    """Features of every span, by encoder and as `ENGINEERED` and `PROFILE`; NaN where nothing was recorded.

    Args:
      batches: all windows, in the order in which spans count them.
      spans: window, first minute and end, in order of windows.
      encoders: parameters by name.
      hidden: channels that are not read.

    Raises:
      RunError: embeddings are not finite.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*encoders, ENGINEERED, PROFILE)}
    first = 0
    for batch, infos in batches:
        borders = np.searchsorted(spans[:, 0], np.arange(first, first + len(infos) + 1))
        first += len(infos)
        if borders[0] == borders[-1]:
            continue
        visible = hide(batch, spec, hidden)
        tokens = {name: embedded(objective, params, visible) for name, params in encoders.items()}
        for row in np.flatnonzero(np.diff(borders)):
            starts, ends = spans[borders[row] : borders[row + 1], 1:].T
            values = np.where(visible["observed"][row], visible["values"][row], np.nan)
            parts[ENGINEERED].append(engineered(values, starts, ends, int(batch["start_minute"][row])))
            parts[PROFILE].append(profile(values, starts, ends))
            for name, encoded in tokens.items():
                own = TokenEmbeddings(*(part[row][encoded.real[row]] for part in encoded))
                parts[name].append(pool_spans(own, starts, ends, objective.tokens, pooling))
    return {name: np.concatenate(each).astype(np.float32) for name, each in parts.items()}


def head_outputs(batches: Batches, task: Task, objective: Supervised, params: Any) -> Float[np.ndarray, "m k"]:
    """What the head of a supervised run says of each span of its task: probabilities of its classes, or a number.

    Args:
      batches: all windows, in the order in which spans count them.
    """
    outputs, first = np.zeros((len(task.spans), len(task.classes) or 1)), 0
    columns = [objective.classes.index(name) if name in objective.classes else -1 for name in task.classes] or [0]
    for batch, infos in batches:
        rows = [np.flatnonzero(task.spans[:, 0] == number) for number in range(first, first + len(infos))]
        first += len(infos)
        most = max(map(len, rows), default=0)
        if not most:
            continue
        spans = np.zeros((len(batch["observed"]), bucket_length(most), 2), np.int32)
        for row, own in enumerate(rows):
            spans[row, : len(own)] = task.spans[own, 1:]
        found = np.asarray(objective.predict(params, jax.tree.map(jnp.asarray, {**batch, "spans": spans})))
        found = np.pad(found, ((0, 0), (0, 0), (0, 1)))  # a class that the head does not know has probability 0
        for row, own in enumerate(rows):
            outputs[own] = found[row, : len(own)][:, columns]
    return outputs


def embedded(objective: NetworkObjective, params: Any, batch: Batch) -> TokenEmbeddings:
    """The token embeddings of a batch as NumPy arrays; RunError where they are not finite."""
    tokens = TokenEmbeddings(*map(np.asarray, objective.embed_tokens(params, jax.tree.map(jnp.asarray, batch))))
    if not np.isfinite(tokens.vectors[tokens.real]).all():
        raise RunError("the model gives embeddings that are not finite.")
    return tokens


def pool_spans(
    tokens: TokenEmbeddings, starts: Int[np.ndarray, " k"], ends: Int[np.ndarray, " k"], grid: TokenGrid, pooling: str
) -> Float[np.ndarray, "k f"]:
    """A window's tokens (without batch axis) pooled over spans and what surrounds them.

    Of each span, one after the other: the tokens whose patch has a minute in it, those with an hour more on either
    side, and all of the window, as engineered features have them. A span that is the whole window has no surroundings
    (NaN).
    """
    minute = tokens.token // grid.groups * grid.patch_minutes

    def pooled(starts: Int[np.ndarray, " k"], ends: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k f"]:
        member = (minute < ends[:, None]) & (minute + grid.patch_minutes > starts[:, None])
        shape = (len(starts), len(minute))
        of_spans = TokenEmbeddings(
            np.broadcast_to(tokens.vectors, (*shape, tokens.vectors.shape[1])),
            np.broadcast_to(tokens.token, shape),
            member,
        )
        return np.asarray(pool(of_spans, grid, pooling, empty=np.nan))

    whole = (starts == 0) & (ends == grid.window_minutes)
    window = pooled(np.zeros(1, int), np.full(1, grid.window_minutes))
    context = [pooled(starts - _AROUND, ends + _AROUND), np.broadcast_to(window, (len(starts), window.shape[1]))]
    return np.concatenate([pooled(starts, ends), *(np.where(whole[:, None], np.nan, part) for part in context)], axis=1)


def engineered(
    values: Float[np.ndarray, "t c"], starts: Int[np.ndarray, " k"], ends: Int[np.ndarray, " k"], start_minute: int
) -> Float[np.ndarray, "k f"]:
    """Statistics of each channel in each span of a window, as a person without a model would compute them.

    Mean, sd, quantiles, observed share and mean absolute change; means of six equal parts of the span; mean and sd of
    the window, means of the hour before and after; sine and cosine of the time of day. NaN where not recorded.

    Args:
      values: of the window, NaN where unobserved.
      start_minute: local time of the window's first minute.
    """
    means = _IntervalMeans(values)
    edges = starts[:, None] + (ends - starts)[:, None] * np.arange(_BLOCKS + 1) // _BLOCKS
    blocks = means(edges[:, :-1], edges[:, 1:]).reshape(len(starts), -1)
    before, after = means(np.maximum(starts - _AROUND, 0), starts), means(ends, np.minimum(ends + _AROUND, len(values)))
    window = np.broadcast_to(_statistics(values[None])[:, :, :2].reshape(1, -1), (len(starts), 2 * values.shape[1]))
    angle = 2 * np.pi * ((start_minute + (starts + ends) / 2) % _DAY) / _DAY
    own = np.stack([_statistics(values[None, start:end])[0] for start, end in zip(starts, ends, strict=True)])
    parts = [
        own.reshape(len(starts), -1),
        blocks,
        window,
        before,
        after,
        np.sin(angle)[:, None],
        np.cos(angle)[:, None],
    ]
    return np.concatenate(parts, axis=1)


def profile(
    values: Float[np.ndarray, "t c"], starts: Int[np.ndarray, " k"], ends: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "k f"]:
    """Means of each channel in 24 equal parts of each span (of a day: hours), or of two hours about a short one."""
    missing = np.maximum(_MIN_PROFILE_MINUTES - (ends - starts), 0)
    starts, ends = starts - missing // 2, ends + missing - missing // 2
    edges = starts[:, None] + (ends - starts)[:, None] * np.arange(_BINS + 1) // _BINS
    edges = np.clip(edges, 0, len(values))
    return _IntervalMeans(values)(edges[:, :-1], edges[:, 1:]).reshape(len(starts), -1)


class _IntervalMeans:
    """Means of channels over intervals of a window, from sums up to each minute."""

    def __init__(self, values: Float[np.ndarray, "t c"]) -> None:
        observed = ~np.isnan(values)
        self._sums = np.pad(np.cumsum(np.where(observed, values, 0), axis=0, dtype=np.float64), ((1, 0), (0, 0)))
        self._counts = np.pad(np.cumsum(observed, axis=0), ((1, 0), (0, 0)))

    def __call__(self, starts: Int[np.ndarray, "*k"], ends: Int[np.ndarray, "*k"]) -> Float[np.ndarray, "*k c"]:
        total, count = self._sums[ends] - self._sums[starts], self._counts[ends] - self._counts[starts]
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _statistics(values: Float[np.ndarray, "k t c"]) -> Float[np.ndarray, "k c s"]:
    """Mean, sd, quantiles, observed share and mean absolute change from minute to minute; NaN without a value."""
    observed = ~np.isnan(values)
    count = observed.sum(axis=1)
    mean = _mean(np.where(observed, values, 0).sum(axis=1, dtype=np.float64), count)
    sd = np.sqrt(_mean(np.where(observed, (values - mean[:, None]) ** 2, 0).sum(axis=1), count))
    change = np.abs(np.diff(values, axis=1))
    known = ~np.isnan(change)
    parts = [mean, sd, *_quantiles(np.sort(values, axis=1), count), count / values.shape[1]]
    parts.append(_mean(np.where(known, change, 0).sum(axis=1), known.sum(axis=1)))
    return np.stack(parts, axis=-1)


def _quantiles(ordered: Float[np.ndarray, "k t c"], count: Int[np.ndarray, "k c"]) -> Iterator[np.ndarray]:
    """`QUANTILES` of the first `count` values, which are in order."""
    for quantile in QUANTILES:
        place = quantile / 100 * np.maximum(count - 1, 0)
        low = place.astype(int)
        high = np.minimum(low + 1, np.maximum(count - 1, 0))
        below, above = (np.take_along_axis(ordered, at[:, None], axis=1)[:, 0] for at in (low, high))
        yield below + (place - low) * (above - below)


def _mean(total: Float[np.ndarray, "*k"], count: Int[np.ndarray, "*k"]) -> Float[np.ndarray, "*k"]:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def by_example(
    features: Float[np.ndarray, "m f"], example: Int[np.ndarray, " m"], count: int
) -> Float[np.ndarray, "n f"]:
    """The mean of each feature over the spans of each example; NaN where none has it."""
    if len(example) == count and (example == np.arange(count)).all():
        return features
    known: Bool[np.ndarray, "m f"] = ~np.isnan(features)
    spans = scipy.sparse.csr_array((np.ones(len(example)), (example, np.arange(len(example)))), (count, len(example)))
    return _mean(spans @ np.where(known, features, 0), spans @ known)
