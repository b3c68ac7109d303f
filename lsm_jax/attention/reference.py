"""Dense segment attention: obvious, quadratic, the oracle of every other implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
) -> Float[Array, "r s h d"]:
    """softmax(q k' / sqrt(d)) v over the keys of the query's own segment; zeros where there are none."""
    # What stands in padding must reach neither the output nor a gradient, NaN included.
    query = jnp.where((query_segments > 0)[:, :, None, None], query, 0)
    key = jnp.where((key_segments > 0)[:, :, None, None], key, 0)
    value = jnp.where((key_segments > 0)[:, :, None, None], value, 0)
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    scores = jnp.einsum("rshd,rthd->rhst", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(same[:, None], scores * query.shape[-1] ** -0.5, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1)).astype(value.dtype)
    return jnp.einsum("rhst,rthd->rshd", weights, value)
