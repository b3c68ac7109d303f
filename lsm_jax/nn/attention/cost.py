"""What an implementation visits, which XLA's own count of a program with kernels does not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxtyping import Array, Int

from lsm_jax.nn.attention.ranges import padded
from lsm_jax.nn.attention.registry import IMPLEMENTATIONS, blocks_of, resolved


@dataclasses.dataclass(frozen=True)
class Visits:
    """What is visited of rows of so many slots.

    Attributes:
      slots: of queries and of keys, padded to blocks, as kernels are given them.
      by_query, by_key: shares of pairs of blocks, of kernels that go by blocks of queries, by blocks of keys.
      products: matrix products of a pair of blocks, by kernel; padding within a block is computed like all else.
    """

    slots: tuple[int, int]
    by_query: float
    by_key: float
    products: Mapping[str, int]


def visits(
    implementation: str, query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], head_size: int
) -> Visits | None:
    """What an implementation visits for given segments; None for one that leaves nothing out."""
    slots = query_segments.shape[1], key_segments.shape[1]
    how = IMPLEMENTATIONS[name := resolved(implementation, *slots)]
    blocks = blocks_of(name, *slots, head_size)
    if blocks is None or not how.products:
        return None
    by_query, by_key = how.ranges(query_segments, key_segments, blocks).visited
    return Visits(
        slots=(padded(slots[0], blocks.query), padded(slots[1], blocks.key)),
        by_query=by_query,
        by_key=by_key,
        products=how.products,
    )
