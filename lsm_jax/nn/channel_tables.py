"""Learned embeddings by canonical channel name.

Each registry channel has a fixed row (the registry only grows at its end), so parameters keep their meaning whatever
channels a dataset has and in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.channels import REGISTRY
from lsm_jax.tokens.grid import TokenGrid

# Room for channels added to the registry later, so that the shapes of parameters stay.
TABLE_ROWS = 96
CHANNEL_ROW = {name: row for row, name in enumerate(REGISTRY)}


def channel_rows(grid: TokenGrid) -> list[int]:
    """The table row of each channel of the grid."""
    return [CHANNEL_ROW[name] for name in grid.channels]


def group_mean(grid: TokenGrid, row_of_channel: Sequence[int], rows: int) -> Float[np.ndarray, "g rows"]:
    """A matrix that averages the table rows of the channels of each group."""
    shares = np.zeros((grid.groups, rows), np.float32)
    for column, row in enumerate(row_of_channel):
        shares[column // grid.patch_channels, row] += 1
    return shares / shares.sum(axis=1, keepdims=True)


class ChannelTable(nnx.Module):
    """A vector per registry channel; a group of channels has the mean of theirs."""

    def __init__(self, width: int, init: nnx.Initializer, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(init(rngs.params(), (TABLE_ROWS, width)))

    def __call__(self, grid: TokenGrid) -> Float[Array, "g width"]:
        return jnp.asarray(group_mean(grid, channel_rows(grid), TABLE_ROWS)) @ self.embedding[...]


class ChannelScale(nnx.Module):
    """Scales and shifts features by channel (FiLM, Perez et al. 2018), so that channels can share layers."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.scale = ChannelTable(width, nnx.initializers.zeros, rngs=rngs)
        self.shift = ChannelTable(width, nnx.initializers.normal(0.3), rngs=rngs)

    def __call__(
        self, features: Float[Array, "r q d"], group_one_hot: Float[Array, "r q g"], grid: TokenGrid
    ) -> Float[Array, "r q d"]:
        scale = group_one_hot @ self.scale(grid).astype(features.dtype)
        return features * (1 + scale) + group_one_hot @ self.shift(grid).astype(features.dtype)
