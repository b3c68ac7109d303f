"""What a window shows around a hidden token: its own channel before and after, and every channel beside it.

A transformer that meets a hidden token as a bare mask token learns slowly what every interpolation knows:
that a heart rate is close to the one ten minutes ago. `surroundings` states it plainly, from visible
tokens only: the nearest visible patches of the channel on either side with their distances, the straight
line between them, and the channel's level in this window. Not in the papers; `docs/explanation/lsm2.md` says why.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

# Predictions one can make without learning: the line, the means of the patches before and after, the window's mean.
ANCHORS = 4


class Cells(NamedTuple):
    """Cells of a batch of windows, by token; unobserved values are zero.

    Attributes:
      values, observed: [B, N, K].
    """

    values: Float[Array, "b n k"]
    observed: Bool[Array, "b n k"]


class Surroundings(NamedTuple):
    """Per decoded token.

    Attributes:
      features: [R, Q, F], compressed by asinh where they are values.
      anchors: [R, Q, ANCHORS, K], z-scored.
    """

    features: Float[Array, "r q f"]
    anchors: Float[Array, "r q a k"]


@dataclasses.dataclass(frozen=True)
class _Side:
    """The nearest visible patches of each query's channel on one side, nearest first.

    Attributes:
      values, observed: cells [R, Q, K], zero where there is no such patch.
      patch: its place in time; exists: whether there is one.
    """

    values: Float[Array, "r q k"]
    observed: Float[Array, "r q k"]
    patch: Int[Array, "r q"]
    exists: Bool[Array, "r q"]


def feature_count(grid: TokenGrid, reach: int) -> int:
    """F of `surroundings`."""
    return 2 * reach * (2 * grid.patch_minutes + 2) + grid.patch_minutes + 5


def surroundings(cells: Cells, shown: Bool[Array, "b n"], targets: Rows, grid: TokenGrid, reach: int) -> Surroundings:
    """The surroundings of the target tokens, from tokens that are `shown` and no others.

    Args:
      grid: of tokens of one channel each (`patch_channels` 1).
      reach: visible patches looked at on either side.
    """
    values = jnp.where(shown[:, :, None], cells.values, 0)
    observed = (cells.observed & shown[:, :, None]).astype(values.dtype)
    before, after = _walk(values, observed, shown, targets, grid, reach)
    patch = (targets.token_index % grid.size) // grid.groups
    pieces = []
    for side in (*before, *after):
        distance = 0.5 * jnp.log1p(jnp.abs(side.patch - patch).astype(values.dtype)) * side.exists
        pieces += [jnp.arcsinh(side.values), side.observed]
        pieces += [distance[..., None], side.exists.astype(values.dtype)[..., None]]
    line = _line(before[0], after[0], patch, grid.patch_minutes)
    left, right = _side_means(before[0], after[0])
    mean, spread, count = (_by_query(moment, targets, grid) for moment in _channel_moments(values, observed, grid))
    pieces += [jnp.arcsinh(line), jnp.arcsinh(left), jnp.arcsinh(right)]
    pieces += [jnp.arcsinh(mean), jnp.arcsinh(spread), 0.2 * jnp.log1p(count)]
    levels = [jnp.broadcast_to(level, line.shape) for level in (left, right, mean)]
    return Surroundings(jnp.concatenate(pieces, axis=-1), jnp.stack([line, *levels], axis=-2))


def _walk(
    values: Float[Array, "b n k"],
    observed: Float[Array, "b n k"],
    shown: Bool[Array, "b n"],
    targets: Rows,
    grid: TokenGrid,
    reach: int,
) -> tuple[list[_Side], list[_Side]]:
    """The `reach` nearest visible patches before and after each targets token, by walking from one to the next."""
    batch = shown.shape[0]
    place = jnp.arange(grid.patches, dtype=jnp.int32)[None, :, None]
    seen = shown.reshape(batch, grid.patches, grid.groups)
    latest = jax.lax.cummax(jnp.where(seen, place, -1), axis=1).reshape(batch, -1)
    soonest = jax.lax.cummin(jnp.where(seen, place, grid.patches), axis=1, reverse=True).reshape(batch, -1)
    base = targets.token_index // grid.size * grid.size + targets.token_index % grid.groups
    patch = (targets.token_index % grid.size) // grid.groups

    def take(tokens: Array, at: Int[Array, "r q"]) -> Array:
        inside = jnp.clip(at, 0, grid.patches - 1)
        return dataclasses.replace(targets, token_index=base + inside * grid.groups).take(tokens)

    def side(at: Int[Array, "r q"], exists: Bool[Array, "r q"]) -> _Side:
        here = exists[..., None]
        return _Side(jnp.where(here, take(values, at), 0), jnp.where(here, take(observed, at), 0), at, exists)

    before, after, back, ahead = [], [], patch, patch
    for _ in range(reach):
        back = jnp.where(back > 0, take(latest, back - 1), -1)
        ahead = jnp.where(ahead < grid.patches - 1, take(soonest, ahead + 1), grid.patches)
        before.append(side(back, back >= 0))
        after.append(side(ahead, ahead < grid.patches))
    return before, after


def _line(before: _Side, after: _Side, patch: Int[Array, "r q"], minutes: int) -> Float[Array, "r q k"]:
    """Linear interpolation from the last cell before to the first after; level beyond the ends, 0 with neither."""
    minute = jnp.arange(minutes)
    last = jnp.where(before.observed > 0, minute, -1).max(axis=-1, keepdims=True)
    first = jnp.where(after.observed > 0, minute, minutes).min(axis=-1, keepdims=True)
    has_last, has_first = last >= 0, first < minutes
    start = jnp.take_along_axis(before.values, jnp.maximum(last, 0), axis=-1)
    end = jnp.take_along_axis(after.values, jnp.minimum(first, minutes - 1), axis=-1)
    start_at = before.patch[..., None] * minutes + last
    end_at = after.patch[..., None] * minutes + first
    share = (patch[..., None] * minutes + minute - start_at) / jnp.maximum(end_at - start_at, 1)
    share = jnp.where(has_last & has_first, share, has_first.astype(share.dtype))
    return jnp.where(has_last, start, 0) * (1 - share) + jnp.where(has_first, end, 0) * share


def _side_means(before: _Side, after: _Side) -> tuple[Float[Array, "r q 1"], Float[Array, "r q 1"]]:
    """Mean of the nearest patch on each side, the other side's where one is missing."""
    counts = [side.observed.sum(axis=-1, keepdims=True) for side in (before, after)]
    sums = [side.values.sum(axis=-1, keepdims=True) for side in (before, after)]
    left, right = (total / jnp.maximum(count, 1) for total, count in zip(sums, counts, strict=True))
    return jnp.where(counts[0] > 0, left, right), jnp.where(counts[1] > 0, right, left)


def _channel_moments(
    values: Float[Array, "b n k"], observed: Float[Array, "b n k"], grid: TokenGrid
) -> tuple[Float[Array, "b g 1"], Float[Array, "b g 1"], Float[Array, "b g 1"]]:
    """Mean, standard deviation and number of the visible cells of each channel of each window."""
    shape = (values.shape[0], grid.patches, grid.groups, grid.patch_minutes)
    values, count = values.reshape(shape), observed.reshape(shape).sum(axis=(1, 3))[..., None]
    mean = values.sum(axis=(1, 3))[..., None] / jnp.maximum(count, 1)
    square = jnp.square(values).sum(axis=(1, 3))[..., None] / jnp.maximum(count, 1)
    return mean, jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0)), count


def _by_query(moment: Float[Array, "b g 1"], targets: Rows, grid: TokenGrid) -> Float[Array, "r q 1"]:
    """A per-window, per-channel figure at each target token."""
    index = targets.token_index // grid.size * grid.groups + targets.token_index % grid.groups
    return dataclasses.replace(targets, token_index=index).take(moment)
