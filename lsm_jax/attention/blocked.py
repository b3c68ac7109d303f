"""What flash attention in blocks is on every platform: a forward pass that keeps little, and a backward pass by hand.

After FlashAttention-2 (Dao, 2023, arXiv:2307.08691): the forward pass keeps its output and one number per query, the
logarithm of the sum of exponentials; the backward pass makes the scores again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsm_jax.attention.pieces import Pieces
from lsm_jax.attention.ranges import Ranges

Visited = TypeVar("Visited", Ranges, Pieces)


class Operands(NamedTuple, Generic[Visited]):
    """What attention by blocks is of: cleaned heads, the query scaled; their segments; what is visited."""

    query: Float[Array, "r s h d"]
    key: Float[Array, "r t h d"]
    value: Float[Array, "r t h d"]
    query_segments: Int[Array, "r s"]
    key_segments: Int[Array, "r t"]
    ranges: Visited


def with_gradient(
    forward: Callable[..., tuple[Array, Array]], backward: Callable[..., tuple[Array, Array, Array]]
) -> Callable[..., Array]:
    """Attention as `reference`, of cleaned heads: zeros stand in padding, which is segment -1 of queries and 0 of keys.

    Args:
      forward: operands -> attended values [R, S, H, D] and the logarithm of the total, in a shape of its own.
      backward: operands, that logarithm, the gradient of the output, and `given` [R, H, S] -> the gradients of query,
        key and value.
    """

    @jax.custom_vjp
    def attend(*operands: Any) -> Array:
        return forward(Operands(*operands))[0]

    def run(*operands: Any) -> tuple[Array, tuple[Operands, Array, Array]]:
        out, log_total = forward(Operands(*operands))
        return out, (Operands(*operands), out, log_total)

    def pull(kept: tuple[Operands, Array, Array], gradient: Float[Array, "r s h d"]) -> tuple[Array | None, ...]:
        operands, out, log_total = kept
        # How much a query's weights must give way: the sum over its keys of weight x gradient of weight.
        weighed = gradient.astype(jnp.float32) * out.astype(jnp.float32)
        # A sum over the last axis as a product, which on a CPU is ten times as fast.
        given = (weighed @ jnp.ones((weighed.shape[-1], 1)))[..., 0].swapaxes(1, 2)
        return *backward(operands, log_total, gradient, given), None, None, None

    attend.defvjp(run, pull)

    def scaled(
        query: Float[Array, "r s h d"],
        key: Float[Array, "r t h d"],
        value: Float[Array, "r t h d"],
        query_segments: Int[Array, "r s"],
        key_segments: Int[Array, "r t"],
        ranges: Ranges | Pieces,
    ) -> Float[Array, "r s h d"]:
        # Scaled here, so that what is kept for the backward pass is what both passes read.
        return attend(query * query.shape[-1] ** -0.5, key, value, query_segments, key_segments, ranges)

    return scaled
