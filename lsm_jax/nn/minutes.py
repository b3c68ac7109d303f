"""The minute path: what every channel did at the very minute that is asked for.

A patch is ten minutes, and a burst of steps in its third minute says which minute the heart rate rose in.
Each hidden minute sees all visible channels at that minute, through weights of the channel asked for.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.nn.channel_tables import PLACE, TABLE_ROWS, ChannelTable
from lsm_jax.nn.neighbours import ANCHORS, Cells
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

_WIDTH = 32


class MinutePath(nnx.Module):
    """A correction per minute from all channels at that minute, the anchors there and the token's features."""

    def __init__(self, grid: TokenGrid, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.grid, self.dtype = grid, dtype
        across = nnx.initializers.normal(0.7 * len(grid.channels) ** -0.5)
        self.across = nnx.Param(across(rngs.params(), (TABLE_ROWS, TABLE_ROWS, 2 * _WIDTH)))
        self.anchors = nnx.Linear(ANCHORS, _WIDTH, dtype=dtype, rngs=rngs)
        self.features = nnx.Linear(width, _WIDTH, dtype=dtype, rngs=rngs)
        self.channel = ChannelTable(_WIDTH, nnx.initializers.zeros, rngs=rngs)
        self.expand = nnx.Linear(_WIDTH, 2 * _WIDTH, dtype=dtype, rngs=rngs)
        self.curved = ChannelTable(2 * _WIDTH, nnx.initializers.zeros, rngs=rngs)
        self.straight = ChannelTable(_WIDTH, nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self,
        cells: Cells,
        shown: Bool[Array, "b n"],
        targets: Rows,
        features: Float[Array, "r q width"],
        anchors: Float[Array, "r q a k"],
        group: Float[Array, "r q g"],
    ) -> Float[Array, "r q k"]:
        """Corrections of the targets' minutes; `group` is their channel, one-hot."""
        own = self._weights(group)
        seen = jnp.einsum("rqmi,rqiw->rqmw", self._minutes(cells, shown, targets).astype(self.dtype), own)
        near = self.anchors(jnp.arcsinh(anchors).swapaxes(-1, -2).astype(self.dtype))
        token = self.features(features.astype(self.dtype)) + self._of(self.channel, group)
        mixed = seen + near + token[:, :, None]
        bent = nnx.gelu(self.expand(nnx.gelu(mixed)))
        curved = jnp.einsum("rqmw,rqw->rqm", bent, self._of(self.curved, group))
        return (curved + jnp.einsum("rqmw,rqw->rqm", mixed, self._of(self.straight, group))).astype(jnp.float32)

    def _weights(self, group: Float[Array, "r q g"]) -> Float[Array, "r q i w"]:
        """For each target the weights its channel gives to every channel's value and mask."""
        places = np.array([PLACE[name] for name in self.grid.channels])
        table = self.across[...][places[:, None], places[None, :]].astype(self.dtype)
        own = group @ table.reshape(len(places), -1)
        return own.reshape(*group.shape[:2], 2 * len(places), _WIDTH)

    def _minutes(self, cells: Cells, shown: Bool[Array, "b n"], targets: Rows) -> Float[Array, "r q m i"]:
        """All channels at each target's minutes: visible values and masks, (value, mask) pairs by channel."""
        grid = self.grid
        seen = cells.observed & shown[:, :, None]
        values = jnp.where(seen, jnp.arcsinh(cells.values), 0)
        pairs = jnp.stack([values, seen.astype(values.dtype)], axis=-1)
        by_patch = pairs.reshape(shown.shape[0], grid.patches, grid.groups, grid.patch_minutes, 2)
        by_patch = by_patch.transpose(0, 1, 3, 2, 4).reshape(shown.shape[0], grid.patches, -1)
        by_row = by_patch.reshape(targets.token_index.shape[0], -1, by_patch.shape[-1])
        place = (targets.token_index // grid.groups)[:, :, None]
        taken = jnp.take_along_axis(by_row, place, axis=1)
        return taken.reshape(*targets.token_index.shape, grid.patch_minutes, 2 * grid.groups)

    def _of(self, table: ChannelTable, group: Float[Array, "r q g"]) -> Float[Array, "r q w"]:
        return group @ table(self.grid).astype(self.dtype)
