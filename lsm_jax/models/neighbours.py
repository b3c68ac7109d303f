"""What a window shows around a hidden token: its own channel before and after, and every channel beside it.

A transformer that meets a hidden token as a bare mask token learns slowly what every interpolation knows:
that a heart rate is close to the one ten minutes ago. `surroundings` states it plainly, from visible
tokens only: the nearest visible patches of the channel on either side with their distances, the straight
line between them, and the channel's level in this window. Not in the papers; the ablation is in
`docs/lsm2.md`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.masking.rows import Rows
from lsm_jax.masking.tokens import TokenGrid

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
    pieces = 2 * reach * (2 * grid.cells_per_token + 2)
    return pieces + 3 * grid.cells_per_token + grid.patch_channels * 3


def surroundings(cells: Cells, shown: Bool[Array, "b n"], decoded: Rows, grid: TokenGrid, reach: int) -> Surroundings:
    """The surroundings of the decoded tokens, from tokens that are `shown` and no others.

    Args:
      reach: visible patches looked at on either side.
    """
    values = jnp.where(shown[:, :, None], cells.values, 0)
    observed = (cells.observed & shown[:, :, None]).astype(values.dtype)
    before, after = _walk(values, observed, shown, decoded, grid, reach)
    patch = (decoded.token_index % grid.size) // grid.groups
    pieces = []
    for side in (*before, *after):
        distance = 0.5 * jnp.log1p(jnp.abs(side.patch - patch).astype(values.dtype)) * side.exists
        pieces += [jnp.arcsinh(side.values), side.observed]
        pieces += [distance[..., None], side.exists.astype(values.dtype)[..., None]]
    line = _line(before[0], after[0], patch, grid)
    left, right = _side_means(before[0], after[0], grid)
    mean, spread, count = (_by_query(moment, decoded, grid) for moment in _channel_moments(values, observed, grid))
    pieces += [jnp.arcsinh(line), jnp.arcsinh(_repeat(left, grid)), jnp.arcsinh(_repeat(right, grid))]
    pieces += [jnp.arcsinh(mean), jnp.arcsinh(spread), 0.2 * jnp.log1p(count)]
    anchors = jnp.stack([line, _repeat(left, grid), _repeat(right, grid), _repeat(mean, grid)], axis=-2)
    return Surroundings(jnp.concatenate(pieces, axis=-1), anchors)


def _walk(
    values: Float[Array, "b n k"],
    observed: Float[Array, "b n k"],
    shown: Bool[Array, "b n"],
    decoded: Rows,
    grid: TokenGrid,
    reach: int,
) -> tuple[list[_Side], list[_Side]]:
    """The `reach` nearest visible patches before and after each decoded token, by walking from one to the next."""
    batch = shown.shape[0]
    place = jnp.arange(grid.patches, dtype=jnp.int32)[None, :, None]
    seen = shown.reshape(batch, grid.patches, grid.groups)
    latest = jax.lax.cummax(jnp.where(seen, place, -1), axis=1).reshape(batch, -1)
    soonest = jax.lax.cummin(jnp.where(seen, place, grid.patches), axis=1, reverse=True).reshape(batch, -1)
    base = decoded.token_index // grid.size * grid.size + decoded.token_index % grid.groups
    patch = (decoded.token_index % grid.size) // grid.groups

    def take(tokens: Array, at: Int[Array, "r q"]) -> Array:
        inside = jnp.clip(at, 0, grid.patches - 1)
        return dataclasses.replace(decoded, token_index=base + inside * grid.groups).take(tokens)

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


def _line(before: _Side, after: _Side, patch: Int[Array, "r q"], grid: TokenGrid) -> Float[Array, "r q k"]:
    """Linear interpolation from the last cell before to the first after; level beyond the ends, 0 with neither."""
    minute = jnp.arange(grid.patch_minutes)[:, None]
    known = [_by_minute(side.observed, grid) > 0 for side in (before, after)]
    last = jnp.where(known[0], minute, -1).max(axis=-2, keepdims=True)
    first = jnp.where(known[1], minute, grid.patch_minutes).min(axis=-2, keepdims=True)
    has_last, has_first = last >= 0, first < grid.patch_minutes
    start = jnp.take_along_axis(_by_minute(before.values, grid), jnp.maximum(last, 0), axis=-2)
    end = jnp.take_along_axis(_by_minute(after.values, grid), jnp.minimum(first, grid.patch_minutes - 1), axis=-2)
    start_at = before.patch[..., None, None] * grid.patch_minutes + last
    end_at = after.patch[..., None, None] * grid.patch_minutes + first
    here = patch[..., None, None] * grid.patch_minutes + minute
    share = (here - start_at) / jnp.maximum(end_at - start_at, 1)
    share = jnp.where(has_last & has_first, share, has_first.astype(share.dtype))
    # A side that lacks the channel has start or end 0 only through `where` above, never through the data.
    line = jnp.where(has_last, start, 0) * (1 - share) + jnp.where(has_first, end, 0) * share
    return line.reshape(*patch.shape, grid.cells_per_token)


def _side_means(before: _Side, after: _Side, grid: TokenGrid) -> tuple[Float[Array, "r q c"], Float[Array, "r q c"]]:
    """Mean of the nearest patch on each side by channel, the other side's where one is missing."""
    means, exists = [], []
    for side in (before, after):
        count = _by_minute(side.observed, grid).sum(axis=-2)
        means.append(_by_minute(side.values, grid).sum(axis=-2) / jnp.maximum(count, 1))
        exists.append(count > 0)
    return jnp.where(exists[0], means[0], means[1]), jnp.where(exists[1], means[1], means[0])


def _channel_moments(
    values: Float[Array, "b n k"], observed: Float[Array, "b n k"], grid: TokenGrid
) -> tuple[Float[Array, "b g c"], Float[Array, "b g c"], Float[Array, "b g c"]]:
    """Mean, standard deviation and number of the visible cells of each channel of each window."""
    shape = (values.shape[0], grid.patches, grid.groups, grid.patch_minutes, grid.patch_channels)
    values, observed = values.reshape(shape), observed.reshape(shape)
    count = observed.sum(axis=(1, 3))
    mean = values.sum(axis=(1, 3)) / jnp.maximum(count, 1)
    square = jnp.square(values).sum(axis=(1, 3)) / jnp.maximum(count, 1)
    return mean, jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0)), count


def _by_query(moment: Float[Array, "b g c"], decoded: Rows, grid: TokenGrid) -> Float[Array, "r q c"]:
    """A per-window, per-group figure at each decoded token."""
    index = decoded.token_index // grid.size * grid.groups + decoded.token_index % grid.groups
    return dataclasses.replace(decoded, token_index=index).take(moment)


def _by_minute(cells: Float[Array, "*b k"], grid: TokenGrid) -> Float[Array, "*b m c"]:
    return cells.reshape(*cells.shape[:-1], grid.patch_minutes, grid.patch_channels)


def _repeat(by_channel: Float[Array, "*b c"], grid: TokenGrid) -> Float[Array, "*b k"]:
    """A figure per channel of the group, at every minute of the patch."""
    return jnp.tile(by_channel, grid.patch_minutes)
