"""A network that predicts labels and names of events: an encoder and a head over the tokens of spans."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.config import ModelConfig
from lsm_jax.nn.masked_autoencoder import Encoder
from lsm_jax.nn.sizes import StackSize
from lsm_jax.tokens.grid import TokenGrid

_EPSILON = 1e-6


class SpanHead(nnx.Module):
    """The parameters of `span_outputs`: a query that begins as zeros, so that pooling begins as the mean."""

    def __init__(self, width: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros
        self.query = nnx.Param(zeros(rngs.params(), (width,)))
        self.kernel = nnx.Param(zeros(rngs.params(), (width, outputs)))
        self.bias = nnx.Param(zeros(rngs.params(), (outputs,)))

    def __call__(self, tokens: Float[Array, "r s d"], inside: Bool[Array, "r q s"]) -> Float[Array, "r q k"]:
        """The outputs of spans (`span_outputs`)."""
        return span_outputs(self.query[...], self.kernel[...], self.bias[...], tokens, inside)


def span_outputs(
    query: Float[Array, " d"],
    kernel: Float[Array, "d k"],
    bias: Float[Array, " k"],
    tokens: Float[Array, "r s d"],
    inside: Bool[Array, "r q s"],
) -> Float[Array, "r q k"]:
    """Attention pooling over the tokens of spans, and one linear layer; float32.

    Args:
      inside: which tokens of its row a span has; spans may overlap, which segments of `attention` cannot say. A span
        without any gives the outputs of the row's mean.
    """
    tokens = tokens.astype(jnp.float32)
    tokens = (tokens - tokens.mean(axis=-1, keepdims=True)) / (tokens.std(axis=-1, keepdims=True) + _EPSILON)
    weights = jax.nn.softmax(jnp.where(inside, (tokens @ query)[:, None], -1e9), axis=-1)
    return weights @ tokens @ kernel + bias


class SupervisedEncoder(nnx.Module):
    """Encoder and head.

    Args:
      outputs: number of classes, or 1 for a number.
      config: with a resolved `dtype`.
    """

    def __init__(self, grid: TokenGrid, size: StackSize, outputs: int, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, size, config, rngs=rngs)
        self.head = SpanHead(size.width, outputs, rngs=rngs)
