"""The network of SimCLR: the encoder of LSM-2, the mean over its tokens, and a projection (arXiv 2002.05709)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.config import ModelConfig
from lsm_jax.nn.masked_autoencoder import Encoder
from lsm_jax.nn.sizes import StackSize
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows

_WIDTH = 128  # of the space in which views are compared (section 4.2)


class ContrastiveEncoder(nnx.Module):
    """Encoder and projection head. Only the encoder is used after training.

    Args:
      config: with a resolved `dtype`.
    """

    def __init__(self, grid: TokenGrid, size: StackSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, size, config, rngs=rngs)
        self.head_hidden = nnx.Linear(size.width, size.width, dtype=config.dtype, rngs=rngs)
        self.head_output = nnx.Linear(size.width, _WIDTH, use_bias=False, dtype=config.dtype, rngs=rngs)

    def __call__(self, cells: TokenCells, rows: Rows, windows: int) -> Float[Array, "b e"]:
        """The L2-normalised projection of each window of the rows; float32."""
        encoded = self.encoder(cells, rows)
        member = jax.nn.one_hot(rows.segment - 1, windows // len(rows.segment), dtype=encoded.dtype)
        sums = jnp.einsum("rsw,rsd->rwd", member, encoded)
        mean = (sums / jnp.maximum(member.sum(axis=1), 1)[:, :, None]).reshape(windows, -1)
        vectors = self.head_output(nnx.relu(self.head_hidden(mean))).astype(jnp.float32)
        # The floor is inside the root, so that a zero vector has a finite gradient.
        return vectors / jnp.sqrt(jnp.maximum(jnp.square(vectors).sum(axis=1, keepdims=True), 1e-12))
