"""Dense segment attention: every score of every pair. The oracle of all other implementations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsm_jax.nn.attention.flash import MASK_VALUE, Inputs


def reference(inputs: Inputs, *, causal: bool = False) -> Float[Array, "r s h d"]:
    """softmax(q k' / sqrt(d)) v over the keys of the query's own segment; zeros where there are none.

    Expects zeros in padding.
    """
    query, key, value, query_segments, key_segments, _ = inputs
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    if causal:
        same &= jnp.arange(key.shape[1]) <= jnp.arange(query.shape[1])[:, None]
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("rshd,rthd->rhst", query * scale, key, preferred_element_type=jnp.float32)
    scores = scores + jnp.where(same, 0.0, MASK_VALUE)[:, None]
    row_max = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # A query without keys has scores of about `MASK_VALUE`. Above half of it, the maximum makes all its weights zero.
    weights = jnp.exp(scores - jnp.maximum(row_max, 0.5 * MASK_VALUE))
    row_sum = weights.sum(axis=-1)
    # Divided after the product: a pass over the output instead of one over all scores.
    # In float32 throughout: gradients of scores are small differences of what 16-bit heads would round.
    out = jnp.einsum("rhst,rthd->rshd", weights, value.astype(jnp.float32))
    return (out / jnp.where(row_sum > 0, row_sum, 1).swapaxes(1, 2)[..., None]).astype(value.dtype)
