"""Features of a token from the nearest visible patches of its own channel.

A transformer learns slowly from a bare mask token what every interpolation uses: a heart rate is close to the one ten
minutes ago. `neighbour_features` gives it directly, from visible tokens only: the nearest visible patches on either
side with their distances, linear interpolation between them, and the mean and spread of the channel in this window. It
is not in the papers; `docs/explanation/lsm2.md` says why.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows

# Predictions without learning: linear interpolation, the means of the patches before and after, the window's mean.
ANCHORS = 4


class NeighbourFeatures(NamedTuple):
    """Features of each target token.

    Attributes:
      features: F of them; values are compressed by asinh.
      anchors: the `ANCHORS` simple predictions of its cells, z-scored.
    """

    features: Float[Array, "r q f"]
    anchors: Float[Array, "r q a k"]


class _Neighbour(NamedTuple):
    """A visible patch near each target token, in its channel.

    Attributes:
      values, observed: its cells; zeros if there is no such patch.
      patch: its index in time.
      exists: whether there is one.
    """

    values: Float[Array, "r q k"]
    observed: Float[Array, "r q k"]
    patch: Int[Array, "r q"]
    exists: Bool[Array, "r q"]


def feature_count(grid: TokenGrid, num_neighbors: int) -> int:
    """F of `neighbour_features`."""
    return 2 * num_neighbors * (2 * grid.patch_minutes + 2) + grid.patch_minutes + 5


def neighbour_features(
    cells: TokenCells, visible: Bool[Array, "b n"], targets: Rows, grid: TokenGrid, num_neighbors: int
) -> NeighbourFeatures:
    """Features of the target tokens, from `visible` tokens only.

    Args:
      grid: of tokens of one channel each (`patch_channels` 1).
      num_neighbors: visible patches on either side.
    """
    values = jnp.where(visible[:, :, None], cells.values, 0)
    observed = (cells.observed & visible[:, :, None]).astype(values.dtype)
    before, after = _nearest(values, observed, visible, targets, grid, num_neighbors)
    patch = (targets.token_index % grid.size) // grid.groups
    features = []
    for near in (*before, *after):
        distance = 0.5 * jnp.log1p(jnp.abs(near.patch - patch).astype(values.dtype)) * near.exists
        features += [jnp.arcsinh(near.values), near.observed]
        features += [distance[..., None], near.exists.astype(values.dtype)[..., None]]
    line = _interpolated(before[0], after[0], patch, grid.patch_minutes)
    left, right = _patch_means(before[0], after[0])
    mean, spread, count = (_at_targets(moment, targets, grid) for moment in _channel_moments(values, observed, grid))
    features += [jnp.arcsinh(line), jnp.arcsinh(left), jnp.arcsinh(right)]
    features += [jnp.arcsinh(mean), jnp.arcsinh(spread), 0.2 * jnp.log1p(count)]
    levels = [jnp.broadcast_to(level, line.shape) for level in (left, right, mean)]
    return NeighbourFeatures(jnp.concatenate(features, axis=-1), jnp.stack([line, *levels], axis=-2))


def _nearest(
    values: Float[Array, "b n k"],
    observed: Float[Array, "b n k"],
    visible: Bool[Array, "b n"],
    targets: Rows,
    grid: TokenGrid,
    num_neighbors: int,
) -> tuple[list[_Neighbour], list[_Neighbour]]:
    """The nearest visible patches before and after each target token, nearest first."""
    batch = visible.shape[0]
    index = jnp.arange(grid.patches, dtype=jnp.int32)[None, :, None]
    by_patch = visible.reshape(batch, grid.patches, grid.groups)
    # For each patch the last visible one up to it, and the first from it on.
    last = jax.lax.cummax(jnp.where(by_patch, index, -1), axis=1).reshape(batch, -1)
    first = jax.lax.cummin(jnp.where(by_patch, index, grid.patches), axis=1, reverse=True).reshape(batch, -1)
    base = targets.token_index // grid.size * grid.size + targets.token_index % grid.groups
    patch = (targets.token_index % grid.size) // grid.groups

    def take(tokens: Array, at: Int[Array, "r q"]) -> Array:
        """The token at a patch, in the target's window and channel."""
        inside = jnp.clip(at, 0, grid.patches - 1)
        return dataclasses.replace(targets, token_index=base + inside * grid.groups).take(tokens)

    def neighbour(at: Int[Array, "r q"], exists: Bool[Array, "r q"]) -> _Neighbour:
        here = exists[..., None]
        return _Neighbour(jnp.where(here, take(values, at), 0), jnp.where(here, take(observed, at), 0), at, exists)

    before, after, back, ahead = [], [], patch, patch
    for _ in range(num_neighbors):
        back = jnp.where(back > 0, take(last, back - 1), -1)
        ahead = jnp.where(ahead < grid.patches - 1, take(first, ahead + 1), grid.patches)
        before.append(neighbour(back, back >= 0))
        after.append(neighbour(ahead, ahead < grid.patches))
    return before, after


def _interpolated(
    before: _Neighbour, after: _Neighbour, patch: Int[Array, "r q"], minutes: int
) -> Float[Array, "r q k"]:
    """Linear interpolation from the last observed cell before to the first after; constant beyond the ends."""
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


def _patch_means(before: _Neighbour, after: _Neighbour) -> tuple[Float[Array, "r q 1"], Float[Array, "r q 1"]]:
    """Mean of the nearest patch on each side, or of the other side's if one is missing."""
    counts = [near.observed.sum(axis=-1, keepdims=True) for near in (before, after)]
    sums = [near.values.sum(axis=-1, keepdims=True) for near in (before, after)]
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


def _at_targets(moment: Float[Array, "b g 1"], targets: Rows, grid: TokenGrid) -> Float[Array, "r q 1"]:
    """A statistic of each window and channel, gathered for each target token."""
    index = targets.token_index // grid.size * grid.groups + targets.token_index % grid.groups
    return dataclasses.replace(targets, token_index=index).take(moment)
