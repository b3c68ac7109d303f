"""The context path of the decoder: predictions from visible tokens near a target, next to the encoder's output.

A target token sees the neighbours of its own channel (`neighbours`), all channels in its patch (`Context`) and all
channels minute by minute (`MinutePath`): a patch is ten minutes, and steps in its third minute say when the heart rate
rose. `Prediction` blends them with the decoder's output. Not in the papers; `docs/explanation/lsm2.md` says why.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.nn.channel_tables import TABLE_ROWS, ChannelScale, ChannelTable, channel_rows
from lsm_jax.nn.neighbours import ANCHORS, feature_count, neighbour_features
from lsm_jax.nn.positions import harmonics
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows

_HARMONICS = 8
_MINUTE_WIDTH = 32


class Context(nnx.Module):
    """Features of target tokens from the neighbours of their channel and from all channels in their patch."""

    def __init__(self, grid: TokenGrid, num_neighbors: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid, self.num_neighbors, self.dtype = grid, num_neighbors, dtype
        inputs = feature_count(grid, num_neighbors) + 2 * _HARMONICS + 2
        self.local_proj = nnx.Linear(inputs, width, dtype=dtype, rngs=rngs)
        cells = 2 * grid.patch_minutes
        init = nnx.initializers.normal(0.5 * cells**-0.5)
        self.cross_channel_proj = nnx.Param(init(rngs.params(), (TABLE_ROWS, cells, width)))
        self.local_scale = ChannelScale(width, rngs=rngs)
        self.mix = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.mix_scale = ChannelScale(width, rngs=rngs)

    def __call__(
        self, cells: TokenCells, visible: Bool[Array, "b n"], targets: Rows, group_one_hot: Float[Array, "r q g"]
    ) -> tuple[Float[Array, "r q width"], Float[Array, "r q a k"]]:
        """Hidden features and anchors (`neighbours.ANCHORS`) of the target tokens."""
        neighbours = neighbour_features(cells, visible, targets, self.grid, self.num_neighbors)
        times = jnp.asarray(self._time_features())[_patch(targets, self.grid)]
        features = jnp.concatenate([neighbours.features, times], axis=-1).astype(self.dtype)
        hidden = self.local_proj(features) + self._cross_channel(cells, visible, targets)
        hidden = nnx.gelu(self.local_scale(hidden, group_one_hot, self.grid))
        hidden = nnx.gelu(self.mix_scale(self.mix(hidden), group_one_hot, self.grid))
        return hidden, neighbours.anchors

    def _time_features(self) -> Float[np.ndarray, "p f"]:
        """Daily harmonics of each patch, and its position in the window."""
        patch = np.arange(self.grid.patches, dtype=np.float32)
        share = patch[:, None] / self.grid.patches
        times = harmonics((patch + 0.5) * self.grid.patch_minutes, _HARMONICS)
        return np.concatenate([times, share, share**2], axis=1).astype(np.float32)

    def _cross_channel(
        self, cells: TokenCells, visible: Bool[Array, "b n"], targets: Rows
    ) -> Float[Array, "r q width"]:
        """A sum over all channels of a projection of their visible cells in the target's patch.

        Computed once per patch, then brought to the targets by a one-hot product, whose gradient is a product too.
        """
        grid, batch = self.grid, visible.shape[0]
        inputs = _visible_cells(cells, visible)
        by_patch = inputs.reshape(batch, grid.patches, grid.groups, 2 * grid.patch_minutes)
        weights = self.cross_channel_proj[...][np.array(channel_rows(grid))].astype(self.dtype)
        projected = jnp.einsum("bpci,ciw->bpw", by_patch.astype(self.dtype), weights)
        projected = projected.reshape(len(targets.token_index), -1, projected.shape[-1])
        patch_of_row = targets.token_index // grid.groups
        return jax.nn.one_hot(patch_of_row, projected.shape[1], dtype=projected.dtype) @ projected


class MinutePath(nnx.Module):
    """A correction of each minute from all channels at that minute, the anchors there and the token's features."""

    def __init__(self, grid: TokenGrid, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid, self.dtype = grid, dtype
        init, zeros = nnx.initializers.normal(0.7 * len(grid.channels) ** -0.5), nnx.initializers.zeros
        self.channel_mix = nnx.Param(init(rngs.params(), (TABLE_ROWS, TABLE_ROWS, 2 * _MINUTE_WIDTH)))
        self.anchors_proj = nnx.Linear(ANCHORS, _MINUTE_WIDTH, dtype=dtype, rngs=rngs)
        self.features_proj = nnx.Linear(width, _MINUTE_WIDTH, dtype=dtype, rngs=rngs)
        self.channel_bias = ChannelTable(_MINUTE_WIDTH, zeros, rngs=rngs)
        self.expand = nnx.Linear(_MINUTE_WIDTH, 2 * _MINUTE_WIDTH, dtype=dtype, rngs=rngs)
        self.nonlinear_head = ChannelTable(2 * _MINUTE_WIDTH, zeros, rngs=rngs)
        self.linear_head = ChannelTable(_MINUTE_WIDTH, zeros, rngs=rngs)

    def __call__(
        self,
        cells: TokenCells,
        visible: Bool[Array, "b n"],
        targets: Rows,
        features: Float[Array, "r q width"],
        anchors: Float[Array, "r q a k"],
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q k"]:
        """Corrections of the cells of the target tokens."""
        of_channel = lambda table: group_one_hot @ table(self.grid).astype(self.dtype)  # noqa: E731
        weights = self._mixing_weights(group_one_hot)
        minutes = self._minutes(cells, visible, targets).astype(self.dtype)
        mixed = jnp.einsum("rqmi,rqiw->rqmw", minutes, weights)
        mixed += self.anchors_proj(jnp.arcsinh(anchors).swapaxes(-1, -2).astype(self.dtype))
        token = self.features_proj(features.astype(self.dtype)) + of_channel(self.channel_bias)
        mixed += token[:, :, None]
        hidden = nnx.gelu(self.expand(nnx.gelu(mixed)))
        nonlinear = jnp.einsum("rqmw,rqw->rqm", hidden, of_channel(self.nonlinear_head))
        return (nonlinear + jnp.einsum("rqmw,rqw->rqm", mixed, of_channel(self.linear_head))).astype(jnp.float32)

    def _mixing_weights(self, group_one_hot: Float[Array, "r q g"]) -> Float[Array, "r q i w"]:
        """The weights that a target's channel gives to every channel's value and mask."""
        rows = np.array(channel_rows(self.grid))
        weights = self.channel_mix[...][rows[:, None], rows[None, :]].astype(self.dtype)
        by_target = group_one_hot @ weights.reshape(len(rows), -1)
        return by_target.reshape(*group_one_hot.shape[:2], 2 * len(rows), _MINUTE_WIDTH)

    def _minutes(self, cells: TokenCells, visible: Bool[Array, "b n"], targets: Rows) -> Float[Array, "r q m i"]:
        """All channels at each minute of each target: (visible value, mask) pairs by channel."""
        grid, batch = self.grid, visible.shape[0]
        pairs = _visible_cells(cells, visible)
        by_patch = pairs.reshape(batch, grid.patches, grid.groups, grid.patch_minutes, 2)
        by_patch = by_patch.transpose(0, 1, 3, 2, 4).reshape(batch, grid.patches, -1)
        by_row = by_patch.reshape(len(targets.token_index), -1, by_patch.shape[-1])
        taken = jnp.take_along_axis(by_row, (targets.token_index // grid.groups)[:, :, None], axis=1)
        return taken.reshape(*targets.token_index.shape, grid.patch_minutes, 2 * grid.groups)


class Prediction(nnx.Module):
    """Cells of target tokens: a learned blend of simple predictions, plus learned corrections.

    The blend is over the anchors, the channel's mean at that time of day, and zero (the training mean). So an untrained
    model already interpolates.
    """

    def __init__(self, grid: TokenGrid, decoder_width: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.join = nnx.Linear(decoder_width + width, width, dtype=dtype, rngs=rngs)
        self.join_scale = ChannelScale(width, rngs=rngs)
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.correction = nnx.Linear(width, grid.cells_per_token, dtype="float32", kernel_init=small, rngs=rngs)
        self.blend = nnx.Linear(width, ANCHORS + 2, dtype="float32", kernel_init=small, rngs=rngs)
        self.time_of_day_mean = ChannelTable(2 * _HARMONICS, nnx.initializers.zeros, rngs=rngs)
        self.minute_path = MinutePath(grid, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "r q d"],
        hidden: Float[Array, "r q width"],
        anchors: Float[Array, "r q a k"],
        cells: TokenCells,
        visible: Bool[Array, "b n"],
        targets: Rows,
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q k"]:
        """Predicted cells from the decoder's `tokens` and from `hidden` and `anchors` of `Context`."""
        joined = self.join(jnp.concatenate([tokens, hidden], axis=-1))
        joined = nnx.gelu(self.join_scale(joined, group_one_hot, self.grid)).astype(jnp.float32)
        weights = jax.nn.softmax(self.blend(joined), axis=-1)
        daily = weights[..., ANCHORS, None] * self._time_of_day_mean(targets, group_one_hot)
        blended = jnp.einsum("rqa,rqak->rqk", weights[..., :ANCHORS], anchors) + daily
        minutes = self.minute_path(cells, visible, targets, joined, anchors, group_one_hot)
        return blended + self.correction(joined) + minutes

    def _time_of_day_mean(self, targets: Rows, group_one_hot: Float[Array, "r q g"]) -> Float[Array, "r q 1"]:
        """The mean daily curve of each target's channel at its time, a sum of harmonics."""
        minute = (np.arange(self.grid.patches, dtype=np.float32) + 0.5) * self.grid.patch_minutes
        curve = jnp.asarray(harmonics(minute, _HARMONICS))[_patch(targets, self.grid)]
        coefficients = group_one_hot.astype(jnp.float32) @ self.time_of_day_mean(self.grid)
        return (curve * coefficients).sum(axis=-1, keepdims=True)


def _patch(targets: Rows, grid: TokenGrid) -> Int[Array, "r q"]:
    """The patch of each target within its window."""
    return (targets.token_index % grid.size) // grid.groups


def _visible_cells(cells: TokenCells, visible: Bool[Array, "b n"]) -> Float[Array, "b n k 2"]:
    """(asinh of the value, mask) of every cell; zeros unless it is observed and its token visible."""
    mask = cells.observed & visible[:, :, None]
    return jnp.stack([jnp.where(mask, jnp.arcsinh(cells.values), 0), mask.astype(cells.values.dtype)], axis=-1)
