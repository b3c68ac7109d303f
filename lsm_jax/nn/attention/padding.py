"""Padding: what stands in it must reach neither an output nor a gradient, NaN included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cleaned(heads: Float[Array, "r s h d"], segments: Int[Array, "r s"]) -> Float[Array, "r s h d"]:
    """Heads with zeros in padding, which is every segment that is not positive."""
    return jnp.where((segments > 0)[:, :, None, None], heads, 0)


def free_of_padding(compute: Callable[..., Array]) -> Callable[..., Array]:
    """Attention that is given clean heads, and whose output in padding nothing depends on."""

    def attend(
        query: Float[Array, "r s h d"],
        key: Float[Array, "r t h d"],
        value: Float[Array, "r t h d"],
        query_segments: Int[Array, "r s"],
        key_segments: Int[Array, "r t"],
        *rest: Any,
    ) -> Float[Array, "r s h d"]:
        query, key, value = cleaned(query, query_segments), cleaned(key, key_segments), cleaned(value, key_segments)
        return cleaned(compute(query, key, value, query_segments, key_segments, *rest), query_segments)

    return attend
