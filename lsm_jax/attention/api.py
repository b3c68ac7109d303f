"""`attention`: a query sees the keys of its own segment. Nothing else computes a softmax over keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Array, Float, Int

from lsm_jax.attention.reference import reference
from lsm_jax.errors import UserError, nearest

IMPLEMENTATIONS: Mapping[str, Callable[..., Array]] = {"reference": reference}


def attention(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    implementation: str = "reference",
) -> Float[Array, "r s h d"]:
    """Segment attention over rows.

    Args:
      query, key, value: heads of R rows; queries and keys may differ in number (cross-attention).
      query_segments, key_segments: contiguous segments, 0 is padding.
      implementation: a name in `IMPLEMENTATIONS`, all held to `reference`.

    Returns:
      Weighted values, zeros for padding and for a query whose segment has no key.

    Raises:
      UserError: unknown implementation.
    """
    try:
        compute = IMPLEMENTATIONS[implementation]
    except KeyError:
        raise UserError(
            f"model.attention={implementation!r} is unknown.{nearest(implementation, IMPLEMENTATIONS)} "
            f"Known: {', '.join(IMPLEMENTATIONS)}."
        ) from None
    return compute(query, key, value, query_segments, key_segments)
