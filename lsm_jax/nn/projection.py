"""Windows as unit vectors for contrastive losses: moments of their tokens, projected (arXiv 2002.05709)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lsm_jax.tokens.rows import Rows

_WIDTH = 128  # of the space in which windows are compared (section 4.2)


class Projection(nnx.Module):
    """A projection head. It is not used after training."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.head_hidden = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.head_output = nnx.Linear(width, _WIDTH, use_bias=False, dtype=dtype, rngs=rngs)

    def project(self, pooled: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """L2-normalised vectors; float32."""
        vectors = self.head_output(nnx.relu(self.head_hidden(pooled))).astype(jnp.float32)
        # The floor is inside the root, so that a zero vector has a finite gradient.
        return vectors / jnp.sqrt(jnp.maximum(jnp.square(vectors).sum(axis=1, keepdims=True), 1e-12))


def window_moments(
    encoded: Float[Array, "r s d"], rows: Rows, windows: int
) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
    """Mean and standard deviation over the encoded tokens of each window; 0 and 0.001 where it has none."""
    member = jax.nn.one_hot(rows.segment - 1, windows // len(rows.segment), dtype=encoded.dtype)
    count = jnp.maximum(member.sum(axis=1), 1)[:, :, None]
    mean = jnp.einsum("rsw,rsd->rwd", member, encoded) / count
    deviations = encoded - jnp.einsum("rsw,rwd->rsd", member, mean)
    # The root of zero has no finite gradient.
    sd = jnp.sqrt(jnp.einsum("rsw,rsd->rwd", member, jnp.square(deviations)) / count + 1e-6)
    return mean.reshape(windows, -1), sd.reshape(windows, -1)
