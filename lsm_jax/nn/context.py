"""The context path: what stands near a hidden token, learned quickly, beside what the encoder makes of the day."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.nn.channel_tables import PLACE, TABLE_ROWS, ChannelScale, ChannelTable
from lsm_jax.nn.minutes import MinutePath
from lsm_jax.nn.neighbours import ANCHORS, Cells, Surroundings, feature_count, surroundings
from lsm_jax.nn.positions import harmonics
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

_CLIMATE_HARMONICS = 8


class Context(nnx.Module):
    """Features of targets tokens from the visible tokens around them.

    Two things go in: the token's surroundings in its own channel (`neighbours.surroundings`) and every
    visible patch at the same time, whatever its channel.
    """

    def __init__(self, grid: TokenGrid, reach: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid, self.reach, self.dtype = grid, reach, dtype
        inputs = feature_count(grid, reach) + 2 * _CLIMATE_HARMONICS + 2
        self.near = nnx.Linear(inputs, width, dtype=dtype, rngs=rngs)
        cells = 2 * grid.patch_minutes
        beside = nnx.initializers.normal(0.5 * cells**-0.5)
        self.beside = nnx.Param(beside(rngs.params(), (TABLE_ROWS, cells, width)))
        self.near_scale = ChannelScale(width, rngs=rngs)
        self.mix = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.mix_scale = ChannelScale(width, rngs=rngs)

    def __call__(
        self, cells: Cells, shown: Bool[Array, "b n"], targets: Rows, group_one_hot: Float[Array, "r q g"]
    ) -> tuple[Float[Array, "r q width"], Float[Array, "r q a k"]]:
        """Hidden features and anchor predictions of the targets tokens."""
        around: Surroundings = surroundings(cells, shown, targets, self.grid, self.reach)
        patch = (targets.token_index % self.grid.size) // self.grid.groups
        features = jnp.concatenate([around.features, jnp.asarray(self._times())[patch]], axis=-1)
        hidden = self.near(features.astype(self.dtype)) + self._beside(cells, shown, targets)
        hidden = nnx.gelu(self.near_scale(hidden, group_one_hot, self.grid))
        hidden = nnx.gelu(self.mix_scale(self.mix(hidden), group_one_hot, self.grid))
        return hidden, around.anchors

    def _times(self) -> Float[np.ndarray, "p f"]:
        """Daily harmonics of each patch, and its place in the window."""
        patch = np.arange(self.grid.patches, dtype=np.float32)
        share = patch[:, None] / self.grid.patches
        times = harmonics((patch + 0.5) * self.grid.patch_minutes, _CLIMATE_HARMONICS)
        return np.concatenate([times, share, share**2], axis=1).astype(np.float32)

    def _beside(self, cells: Cells, shown: Bool[Array, "b n"], targets: Rows) -> Float[Array, "r q width"]:
        """The visible patches at each targets token's time, one projection per canonical channel.

        Made once per patch in time and then brought to the tokens by a product with one-hot rows, whose
        gradient is a product as well.
        """
        grid, batch = self.grid, shown.shape[0]
        seen = cells.observed & shown[:, :, None]
        inputs = jnp.stack([jnp.where(seen, jnp.arcsinh(cells.values), 0), seen.astype(cells.values.dtype)], axis=-1)
        by_patch = inputs.reshape(batch, grid.patches, grid.groups, 2 * grid.patch_minutes)
        places = np.array([PLACE[name] for name in grid.channels])
        table = self.beside[...][places].astype(self.dtype)
        made = jnp.einsum("bpci,ciw->bpw", by_patch.astype(self.dtype), table)
        rows = targets.token_index.shape[0]
        made = made.reshape(rows, -1, made.shape[-1])
        place = targets.token_index // grid.groups  # the window's place and the patch, as one index
        return jax.nn.one_hot(place, made.shape[1], dtype=made.dtype) @ made


class Prediction(nnx.Module):
    """Cells out of a targets token: a learned blend of what needs no learning, and a correction.

    The blend weighs the anchors, the channel's time of day and zero (the mean over people), so that an
    untrained model is a sensible interpolation already.
    """

    def __init__(self, grid: TokenGrid, decoder_width: int, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.join = nnx.Linear(decoder_width + width, width, dtype=dtype, rngs=rngs)
        self.join_scale = ChannelScale(width, rngs=rngs)
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.correction = nnx.Linear(width, grid.cells_per_token, dtype="float32", kernel_init=small, rngs=rngs)
        self.blend = nnx.Linear(width, ANCHORS + 2, dtype="float32", kernel_init=small, rngs=rngs)
        self.climate = ChannelTable(2 * _CLIMATE_HARMONICS, nnx.initializers.zeros, rngs=rngs)
        self.minutes = MinutePath(grid, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "r q d"],
        hidden: Float[Array, "r q width"],
        anchors: Float[Array, "r q a k"],
        cells: Cells,
        shown: Bool[Array, "b n"],
        targets: Rows,
        group_one_hot: Float[Array, "r q g"],
    ) -> Float[Array, "r q k"]:
        joined = self.join(jnp.concatenate([tokens, hidden], axis=-1))
        joined = nnx.gelu(self.join_scale(joined, group_one_hot, self.grid)).astype(jnp.float32)
        weights = jax.nn.softmax(self.blend(joined), axis=-1)
        climate = weights[..., ANCHORS, None] * self._climate(targets, group_one_hot)
        blended = jnp.einsum("rqa,rqak->rqk", weights[..., :ANCHORS], anchors) + climate
        minutes = self.minutes(cells, shown, targets, joined, anchors, group_one_hot)
        return blended + self.correction(joined) + minutes

    def _climate(self, targets: Rows, group_one_hot: Float[Array, "r q g"]) -> Float[Array, "r q 1"]:
        """The channel's mean course of the day."""
        minute = (np.arange(self.grid.patches, dtype=np.float32) + 0.5) * self.grid.patch_minutes
        patch = (targets.token_index % self.grid.size) // self.grid.groups
        course = jnp.asarray(harmonics(minute, _CLIMATE_HARMONICS))[patch]
        return (course * (group_one_hot.astype(jnp.float32) @ self.climate(self.grid))).sum(axis=-1, keepdims=True)
