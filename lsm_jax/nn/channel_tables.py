"""Learned tables by canonical channel name.

A row belongs to a registry channel for good (the registry only grows at its end), so parameters keep
their meaning whatever channels a data set has and in whatever order.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.channels import REGISTRY
from lsm_jax.tokens.grid import TokenGrid

# Room for channels added to the registry later, so that tables keep their shape in old checkpoints.
TABLE_ROWS = 96
PLACE = {name: place for place, name in enumerate(REGISTRY)}


def group_shares(grid: TokenGrid, row_of: dict[str, int], rows: int) -> Float[np.ndarray, "g rows"]:
    """Per channel group the mean of its channels' one-hot table rows."""
    shares = np.zeros((grid.groups, rows), np.float32)
    for column, name in enumerate(grid.channels):
        shares[column // grid.patch_channels, row_of[name]] += 1
    return shares / shares.sum(axis=1, keepdims=True)


class ChannelTable(nnx.Module):
    """A vector per registry channel; a group of channels has the mean of theirs."""

    def __init__(self, width: int, init: nnx.Initializer, *, rngs: nnx.Rngs) -> None:
        self.rows = nnx.Param(init(rngs.params(), (TABLE_ROWS, width)))

    def __call__(self, grid: TokenGrid) -> Float[Array, "g width"]:
        return jnp.asarray(group_shares(grid, PLACE, TABLE_ROWS)) @ self.rows[...]


class ChannelScale(nnx.Module):
    """Scales and shifts features by channel, so that shared layers serve each channel its own way.

    Perez et al. 2018 (FiLM), conditioned on the channel; starts at scale one, small shifts.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.scale = ChannelTable(width, nnx.initializers.zeros, rngs=rngs)
        self.shift = ChannelTable(width, nnx.initializers.normal(0.3), rngs=rngs)

    def __call__(
        self, features: Float[Array, "r q d"], group_one_hot: Float[Array, "r q g"], grid: TokenGrid
    ) -> Float[Array, "r q d"]:
        scale = group_one_hot @ self.scale(grid).astype(features.dtype)
        return features * (1 + scale) + group_one_hot @ self.shift(grid).astype(features.dtype)
