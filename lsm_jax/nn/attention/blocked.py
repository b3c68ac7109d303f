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

from lsm_jax.nn.attention.padding import cleaned
from lsm_jax.nn.attention.pieces import Pieces
from lsm_jax.nn.attention.platforms import platform
from lsm_jax.nn.attention.ranges import Ranges

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
    """Attention as `reference`. Padding is segment -1 of queries and 0 of keys, so that no query there sees a key.

    Args:
      forward: operands -> attended values [R, S, H, D], zeros in padding, and the logarithm of the total, in a shape of
        its own.
      backward: operands, that logarithm, the gradient of the output with zeros in padding, and `given` [R, H, S] -> the
        gradients of the scaled query, key and value, zeros in padding.
    """

    @jax.custom_vjp
    def attend(*operands: Any) -> Array:
        return run(*operands)[0]

    def run(
        query: Float[Array, "r s h d"],
        key: Float[Array, "r t h d"],
        value: Float[Array, "r t h d"],
        query_segments: Int[Array, "r s"],
        key_segments: Int[Array, "r t"],
        ranges: Ranges | Pieces,
    ) -> tuple[Array, tuple[Operands, Array, Array]]:
        # Cleaned and scaled in here: what is kept for the backward pass is what both passes read, and nothing twice.
        query = cleaned(query * query.shape[-1] ** -0.5, query_segments)
        key, value = cleaned(key, key_segments), cleaned(value, key_segments)
        operands: Operands = Operands(query, key, value, query_segments, key_segments, ranges)
        out, log_total = forward(operands)
        return out, (operands, out, log_total)

    def pull(kept: tuple[Operands, Array, Array], gradient: Float[Array, "r s h d"]) -> tuple[Array | None, ...]:
        operands, out, log_total = kept
        gradient = cleaned(gradient, operands.query_segments)
        # How much a query's weights must give way: the sum over its keys of weight x gradient of weight.
        weighed = gradient.astype(jnp.float32) * out.astype(jnp.float32)
        if platform() == "cpu":  # where a product is ten times as fast as a sum over the last axis
            given = (weighed @ jnp.ones((weighed.shape[-1], 1)))[..., 0].swapaxes(1, 2)
        else:
            given = weighed.sum(axis=-1).swapaxes(1, 2)
        to_query, to_key, to_value = backward(operands, log_total, gradient, given)
        return to_query * to_query.shape[-1] ** -0.5, to_key, to_value, None, None, None

    attend.defvjp(run, pull)
    return attend
