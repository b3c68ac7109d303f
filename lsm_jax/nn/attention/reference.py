"""Dense segment attention: obvious, quadratic, the oracle of every other implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEVER = -1e30  # a score whose exponential is exactly zero


def reference(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    *,
    causal: bool = False,
) -> Float[Array, "r s h d"]:
    """softmax(q k' / sqrt(d)) v over the keys of the query's own segment; zeros where there are none.

    Of heads with zeros in padding, as `padding.free_of_padding` gives them.
    """
    same = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    if causal:
        same &= jnp.arange(key.shape[1]) <= jnp.arange(query.shape[1])[:, None]
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("rshd,rthd->rhst", query * scale, key, preferred_element_type=jnp.float32)
    scores = scores + jnp.where(same, 0.0, NEVER)[:, None]
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # Where a query has no key every score is about `NEVER`; held above it, all weights come out zero.
    weights = jnp.exp(scores - jnp.maximum(highest, 0.5 * NEVER))
    total = weights.sum(axis=-1)
    # Divided after the product: a pass over the output instead of one over all scores.
    attended = jnp.einsum("rhst,rthd->rshd", weights.astype(value.dtype), value)
    return attended / jnp.where(total > 0, total, 1).swapaxes(1, 2)[..., None].astype(value.dtype)
