"""Local context of a target token in the encoder's output.

A decoder learns slowly, by attention alone, what every interpolation uses: a heart rate is close to the one ten minutes
ago, and steps in the third minute say when it rose. So each target token also reads some of the encoder's outputs at
fixed relative positions: the nearest visible tokens of its channel on either side, and the tokens of all channels in
its own patch, as a whole and minute by minute. Nothing here reads recorded values: all goes through the encoder, which
therefore has to carry them. Only the fills (`fills`) that a prediction starts from are computed from visible cells.
Not in the papers; `docs/explanation/lsm2.md` says why.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.nn.channel_tables import TABLE_ROWS, ChannelScale, ChannelTable, channel_rows
from lsm_jax.nn.fills import FILLS
from lsm_jax.nn.neighbours import nearest, patch_of
from lsm_jax.nn.positions import harmonics
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

_HARMONICS = 8
_CODES = 4  # numbers that a token gives for each of its minutes
_MINUTE_WIDTH = 32


class PatchCodes(nnx.Module):
    """A few numbers per minute of every encoded token, for the targets in the same patch."""

    def __init__(self, grid: TokenGrid, encoder_width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.code_proj = nnx.Linear(encoder_width, grid.patch_minutes * _CODES, dtype=dtype, rngs=rngs)

    def __call__(self, encoded: Float[Array, "r s d"], rows: Rows, targets: Rows) -> Float[Array, "r q m i"]:
        """For each target the codes of all channels' tokens in its patch, by minute; zeros for tokens not encoded."""
        grid, codes = self.grid, self.code_proj(encoded)
        by_token = rows.scatter(codes).reshape(len(codes), -1, grid.groups, grid.patch_minutes, _CODES)
        by_patch = by_token.swapaxes(2, 3).reshape(len(codes), by_token.shape[1], -1)
        taken = jnp.take_along_axis(by_patch, (targets.token_index // grid.groups)[:, :, None], axis=1)
        return taken.reshape(*targets.token_index.shape, grid.patch_minutes, grid.groups * _CODES)


class Context(nnx.Module):
    """Features of target tokens from the nearest encoded tokens of their channel and from their patch."""

    def __init__(
        self, grid: TokenGrid, num_neighbors: int, encoder_width: int, width: int, *, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.grid, self.num_neighbors, self.dtype = grid, num_neighbors, dtype
        inputs = 2 * num_neighbors * (encoder_width + 2) + 2 * _HARMONICS + 2
        self.neighbor_proj = nnx.Linear(inputs, width, dtype=dtype, rngs=rngs)
        cells = grid.patch_minutes * _CODES
        init = nnx.initializers.normal(0.5 * cells**-0.5)
        self.cross_channel_proj = nnx.Param(init(rngs.params(), (TABLE_ROWS, cells, width)))
        self.neighbor_scale = ChannelScale(width, rngs=rngs)
        self.mix = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.mix_scale = ChannelScale(width, rngs=rngs)

    def __call__(
        self,
        encoded: Float[Array, "r s d"],
        codes: Float[Array, "r q m i"],
        rows: Rows,
        targets: Rows,
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q width"]:
        """Hidden features of the target tokens, from `encoded` tokens of `rows` and from `PatchCodes`."""
        features = jnp.concatenate([self._neighbours(encoded, rows, targets), self._times(targets)], axis=-1)
        hidden = self.neighbor_proj(features.astype(self.dtype)) + self._cross_channel(codes)
        hidden = nnx.gelu(self.neighbor_scale(hidden, group_one_hot, self.grid))
        return nnx.gelu(self.mix_scale(self.mix(hidden), group_one_hot, self.grid))

    def _neighbours(self, encoded: Float[Array, "r s d"], rows: Rows, targets: Rows) -> Float[Array, "r q f"]:
        """The nearest encoded tokens on either side, with their distances and whether they exist."""
        is_encoded = rows.contains(rows.row_tokens // self.grid.size * len(encoded))
        before, after = nearest(is_encoded, targets, self.grid, self.num_neighbors)
        patch, features = patch_of(targets, self.grid), []
        for near in (*before, *after):
            exists = near.exists[..., None].astype(encoded.dtype)
            slots = rows.slots_of(dataclasses.replace(targets, token_index=near.token_index))
            token = jnp.take_along_axis(encoded, slots[:, :, None], axis=1, mode="clip")
            distance = 0.5 * jnp.log1p(jnp.abs(near.patch - patch).astype(encoded.dtype))[..., None]
            features += [token * exists, distance * exists, exists]
        return jnp.concatenate(features, axis=-1)

    def _times(self, targets: Rows) -> Float[Array, "r q f"]:
        """Daily harmonics of each target's patch, and its position in the window."""
        patch = np.arange(self.grid.patches, dtype=np.float32)
        share = patch[:, None] / self.grid.patches
        times = harmonics((patch + 0.5) * self.grid.patch_minutes, _HARMONICS)
        table = np.concatenate([times, share, share**2], axis=1).astype(np.float32)
        return jnp.asarray(table)[patch_of(targets, self.grid)]

    def _cross_channel(self, codes: Float[Array, "r q m i"]) -> Float[Array, "r q width"]:
        """A sum over all channels of a projection of their codes in the target's patch."""
        by_channel = codes.reshape(*codes.shape[:3], self.grid.groups, _CODES)
        weights = self.cross_channel_proj[...][np.array(channel_rows(self.grid))].astype(self.dtype)
        weights = weights.reshape(self.grid.groups, self.grid.patch_minutes, _CODES, -1)
        return jnp.einsum("rqmci,cmiw->rqw", by_channel.astype(self.dtype), weights)


class MinutePath(nnx.Module):
    """A correction of each minute from the codes of all channels at that minute and from the token's features."""

    def __init__(self, grid: TokenGrid, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid, self.dtype = grid, dtype
        init, zeros = nnx.initializers.normal(0.7 * len(grid.channels) ** -0.5), nnx.initializers.zeros
        self.channel_mix = nnx.Param(init(rngs.params(), (TABLE_ROWS, TABLE_ROWS, _CODES * _MINUTE_WIDTH)))
        self.features_proj = nnx.Linear(width, grid.patch_minutes * _MINUTE_WIDTH, dtype=dtype, rngs=rngs)
        self.channel_bias = ChannelTable(_MINUTE_WIDTH, zeros, rngs=rngs)
        self.expand = nnx.Linear(_MINUTE_WIDTH, 2 * _MINUTE_WIDTH, dtype=dtype, rngs=rngs)
        self.nonlinear_head = ChannelTable(2 * _MINUTE_WIDTH, zeros, rngs=rngs)
        self.linear_head = ChannelTable(_MINUTE_WIDTH, zeros, rngs=rngs)

    def __call__(
        self,
        codes: Float[Array, "r q m i"],
        features: Float[Array, "r q width"],
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q m"]:
        """Corrections of the cells of the target tokens."""
        of_channel = lambda table: group_one_hot @ table(self.grid).astype(self.dtype)  # noqa: E731
        mixed = jnp.einsum("rqmi,rqiw->rqmw", codes.astype(self.dtype), self._mixing_weights(group_one_hot))
        token = self.features_proj(features.astype(self.dtype))
        mixed += token.reshape(mixed.shape) + of_channel(self.channel_bias)[:, :, None]
        hidden = nnx.gelu(self.expand(nnx.gelu(mixed)))
        nonlinear = jnp.einsum("rqmw,rqw->rqm", hidden, of_channel(self.nonlinear_head))
        return (nonlinear + jnp.einsum("rqmw,rqw->rqm", mixed, of_channel(self.linear_head))).astype(jnp.float32)

    def _mixing_weights(self, group_one_hot: Float[Array, "r q g"]) -> Float[Array, "r q i w"]:
        """The weights that a target's channel gives to the codes of every channel."""
        rows = np.array(channel_rows(self.grid))
        weights = self.channel_mix[...][rows[:, None], rows[None, :]].astype(self.dtype)
        by_target = group_one_hot @ weights.reshape(len(rows), -1)
        return by_target.reshape(*group_one_hot.shape[:2], len(rows) * _CODES, _MINUTE_WIDTH)


class Prediction(nnx.Module):
    """Cells of target tokens: a learned blend of fills, plus learned corrections.

    The blend is over the fills, the channel's mean at that time of day, and zero (the training mean). So an untrained
    model already interpolates.
    """

    def __init__(self, grid: TokenGrid, decoder_width: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.join = nnx.Linear(decoder_width + width, width, dtype=dtype, rngs=rngs)
        self.join_scale = ChannelScale(width, rngs=rngs)
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.correction = nnx.Linear(width, grid.cells_per_token, dtype="float32", kernel_init=small, rngs=rngs)
        self.blend = nnx.Linear(width, FILLS + 2, dtype="float32", kernel_init=small, rngs=rngs)
        self.time_of_day_mean = ChannelTable(2 * _HARMONICS, nnx.initializers.zeros, rngs=rngs)
        self.minute_path = MinutePath(grid, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "r q d"],
        hidden: Float[Array, "r q width"],
        codes: Float[Array, "r q m i"],
        fills: Float[Array, "r q a k"],
        targets: Rows,
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q k"]:
        """Predicted cells from the decoder's `tokens`, `hidden` of `Context`, `PatchCodes` and fills."""
        joined = self.join(jnp.concatenate([tokens, hidden], axis=-1))
        joined = nnx.gelu(self.join_scale(joined, group_one_hot, self.grid)).astype(jnp.float32)
        weights = jax.nn.softmax(self.blend(joined), axis=-1)
        daily = weights[..., FILLS, None] * self._time_of_day_mean(targets, group_one_hot)
        blended = jnp.einsum("rqa,rqak->rqk", weights[..., :FILLS], fills) + daily
        return blended + self.correction(joined) + self.minute_path(codes, joined, group_one_hot)

    def _time_of_day_mean(self, targets: Rows, group_one_hot: Float[Array, "r q g"]) -> Float[Array, "r q 1"]:
        """The mean daily curve of each target's channel at its time, a sum of harmonics."""
        minute = (np.arange(self.grid.patches, dtype=np.float32) + 0.5) * self.grid.patch_minutes
        curve = jnp.asarray(harmonics(minute, _HARMONICS))[patch_of(targets, self.grid)]
        coefficients = group_one_hot.astype(jnp.float32) @ self.time_of_day_mean(self.grid)
        return (curve * coefficients).sum(axis=-1, keepdims=True)
