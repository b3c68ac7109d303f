"""The network of SimCLR: the encoder of LSM-2, the mean over its tokens, and a projection (arXiv 2002.05709)."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.config import ModelConfig
from lsm_jax.nn.masked_autoencoder import Encoder
from lsm_jax.nn.projection import Projection, window_moments
from lsm_jax.nn.sizes import StackSize
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows


class ContrastiveEncoder(Projection):
    """Encoder and projection head. Only the encoder is used after training.

    Args:
      config: with a resolved `dtype`.
    """

    def __init__(self, grid: TokenGrid, size: StackSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, size, config, rngs=rngs)
        super().__init__(size.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, cells: TokenCells, rows: Rows, windows: int) -> Float[Array, "b e"]:
        """The L2-normalised projection of each window of the rows; float32."""
        mean, _ = window_moments(self.encoder(cells, rows), rows, windows)
        return self.project(mean)
