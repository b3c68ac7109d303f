"""What the flash attention implementations share: their inputs, and the gradient around a forward and backward pass.

After FlashAttention-2 (Dao, 2023, arXiv:2307.08691): the forward pass keeps its output O and lse, the logarithm of the
sum of exponentials of each query's scores; the backward pass recomputes the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from lsm_jax.nn.attention.blocks import BlockMask, BlockRanges, SegmentTiles, zero_padding
from lsm_jax.nn.attention.platforms import platform

MASK_VALUE = -1e30  # a score whose exponential is exactly zero

Gradients = tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]  # dq, dk, dv
Mask = TypeVar("Mask", BlockRanges, SegmentTiles, BlockMask | None)


class Inputs(NamedTuple, Generic[Mask]):
    """What every implementation computes attention of. Padding is marked by `blocks.mark_padding`."""

    query: Float[Array, "r s h d"]
    key: Float[Array, "r t h d"]
    value: Float[Array, "r t h d"]
    query_segments: Int[Array, "r s"]
    key_segments: Int[Array, "r t"]
    block_mask: Mask


def zeroed(inputs: Inputs[Mask]) -> Inputs[Mask]:
    """The inputs with zeros in padding."""
    query = zero_padding(inputs.query, inputs.query_segments)
    key, value = (zero_padding(each, inputs.key_segments) for each in (inputs.key, inputs.value))
    return inputs._replace(query=query, key=key, value=value)


def flash_attention(
    forward: Callable[..., tuple[Array, Array]], backward: Callable[..., Gradients]
) -> Callable[[Inputs], Array]:
    """Segment attention as `reference`, with its gradient.

    Args:
      forward: inputs -> O [R, S, H, D] and lse, in a shape of its own. Its inputs have zeros in padding and the query
        is scaled; O must be zero in padding.
      backward: (inputs, lse, do, delta [R, H, S]) -> dq (of the scaled query), dk and dv. `do`, the gradient of O, has
        zeros in padding; so must the results.
    """

    @jax.custom_vjp
    def attend(*inputs: Any) -> Array:
        return fwd(*inputs)[0]

    def fwd(query: Array, *rest: Any) -> tuple[Array, tuple[Inputs, Array, Array]]:
        # Scaled and zeroed in here, so that only what both passes read is kept for the backward pass.
        inputs = zeroed(Inputs(query * query.shape[-1] ** -0.5, *rest))
        out, lse = forward(inputs)
        return out, (inputs, out, lse)

    def bwd(residuals: tuple[Inputs, Array, Array], do: Float[Array, "r s h d"]) -> tuple[Array | None, ...]:
        inputs, out, lse = residuals
        do = zero_padding(do, inputs.query_segments)
        # delta = rowsum(dO * O) (FlashAttention-2, algorithm 2).
        product = do.astype(jnp.float32) * out.astype(jnp.float32)
        if platform() == "cpu":  # where a matrix product is ten times as fast as a sum over the last axis
            delta = (product @ jnp.ones((product.shape[-1], 1)))[..., 0].swapaxes(1, 2)
        else:
            delta = product.sum(axis=-1).swapaxes(1, 2)
        dq, dk, dv = backward(inputs, lse, do, delta)
        return dq * dq.shape[-1] ** -0.5, dk, dv, None, None, None

    attend.defvjp(fwd, bwd)
    return lambda inputs: attend(*inputs)


def worst_case_cost(
    products: int, scores: int, head_size: int, arrays: Sequence[Array | jax.ShapeDtypeStruct]
) -> pl.CostEstimate:
    """Cost of a kernel of so many matrix products, for XLA's scheduler, as if all block pairs were computed.

    Args:
      scores: query slots x key slots x heads x rows.
      arrays: operands and results.
    """
    return pl.CostEstimate(
        flops=2 * products * scores * head_size,
        transcendentals=scores,
        bytes_accessed=sum(array.size * array.dtype.itemsize for array in arrays),
    )
