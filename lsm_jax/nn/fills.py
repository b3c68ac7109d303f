"""Simple predictions of a target token's cells, from visible cells and without parameters.

They are where a prediction starts (`context.Prediction`): the transformer predicts what they miss.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.nn.neighbours import Neighbour, nearest, patch_of
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows

FILLS = 4

_Cells = tuple[Float[Array, "r q k"], Float[Array, "r q k"]]  # values and 1 where observed; zeros without a neighbour


def fills(
    cells: TokenCells, visible: Bool[Array, "b n"], targets: Rows, grid: TokenGrid
) -> Float[Array, "r q {FILLS} k"]:
    """Linear interpolation, the means of the visible patches before and after, and the window's mean, z-scored.

    Each is of the target's channel; 0 where the channel has no visible cell.

    Args:
      grid: of tokens of one channel each (`patch_channels` 1).
    """
    values = jnp.where(visible[:, :, None], cells.values, 0)
    observed = (cells.observed & visible[:, :, None]).astype(values.dtype)

    def take(near: Neighbour) -> _Cells:
        at, here = dataclasses.replace(targets, token_index=near.token_index), near.exists[..., None]
        return jnp.where(here, at.take(values), 0), jnp.where(here, at.take(observed), 0)

    (before,), (after,) = nearest(visible, targets, grid, 1)
    left, right = take(before), take(after)
    line = _interpolated(left, right, before.patch, after.patch, patch_of(targets, grid), grid.patch_minutes)
    levels = [*_patch_means(left, right), _window_mean(values, observed, targets, grid)]
    return jnp.stack([line, *(jnp.broadcast_to(level, line.shape) for level in levels)], axis=-2)


def _interpolated(
    before: _Cells,
    after: _Cells,
    patch_before: Int[Array, "r q"],
    patch_after: Int[Array, "r q"],
    patch: Int[Array, "r q"],
    minutes: int,
) -> Float[Array, "r q k"]:
    """Linear interpolation from the last observed cell before to the first after; constant beyond the ends."""
    minute = jnp.arange(minutes)
    last = jnp.where(before[1] > 0, minute, -1).max(axis=-1, keepdims=True)
    first = jnp.where(after[1] > 0, minute, minutes).min(axis=-1, keepdims=True)
    has_last, has_first = last >= 0, first < minutes
    start = jnp.take_along_axis(before[0], jnp.maximum(last, 0), axis=-1)
    end = jnp.take_along_axis(after[0], jnp.minimum(first, minutes - 1), axis=-1)
    start_at = patch_before[..., None] * minutes + last
    end_at = patch_after[..., None] * minutes + first
    share = (patch[..., None] * minutes + minute - start_at) / jnp.maximum(end_at - start_at, 1)
    share = jnp.where(has_last & has_first, share, has_first.astype(share.dtype))
    return jnp.where(has_last, start, 0) * (1 - share) + jnp.where(has_first, end, 0) * share


def _patch_means(before: _Cells, after: _Cells) -> tuple[Float[Array, "r q 1"], Float[Array, "r q 1"]]:
    """Mean of the nearest patch on each side, or of the other side's if one is missing."""
    counts = [observed.sum(axis=-1, keepdims=True) for _, observed in (before, after)]
    sums = [values.sum(axis=-1, keepdims=True) for values, _ in (before, after)]
    left, right = (total / jnp.maximum(count, 1) for total, count in zip(sums, counts, strict=True))
    return jnp.where(counts[0] > 0, left, right), jnp.where(counts[1] > 0, right, left)


def _window_mean(
    values: Float[Array, "b n k"], observed: Float[Array, "b n k"], targets: Rows, grid: TokenGrid
) -> Float[Array, "r q 1"]:
    """The mean of the visible cells of each target's channel in its window."""
    shape = (values.shape[0], grid.patches, grid.groups, grid.patch_minutes)
    total, count = (array.reshape(shape).sum(axis=(1, 3)) for array in (values, observed))
    index = targets.token_index // grid.size * grid.groups + targets.token_index % grid.groups
    return dataclasses.replace(targets, token_index=index).take((total / jnp.maximum(count, 1))[..., None])
