"""Which blocks of keys a block of queries can see: pure functions of the segments, the same for every layer.

Every implementation but the dense ones walks over blocks, and what it skips it skips by these ranges. They never
decide what is seen, which the segments alone do: they only bound it, from above.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

_NOTHING = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Slots to a block of queries and to a block of keys.

    Attributes:
      fetched: how many blocks of a side are brought from memory together.
    """

    query: int
    key: int
    fetched: int = 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["first_key", "keys", "first_query", "queries", "fetched"],
    meta_fields=["blocks"],
)
@dataclasses.dataclass(frozen=True)
class Ranges:
    """Per block the blocks of the other side to be visited, a first one and how many.

    Attributes:
      first_key, keys: per block of queries, for the forward pass and the gradient of the queries.
      first_query, queries: per block of keys, for the gradient of keys and values.
      fetched: the ranges of what is fetched together; None where that is a block.
      blocks: what they were made for.
    """

    first_key: Int[Array, "r i"]
    keys: Int[Array, "r i"]
    first_query: Int[Array, "r j"]
    queries: Int[Array, "r j"]
    fetched: Ranges | None
    blocks: Blocks

    @property
    def visited(self) -> tuple[float, float]:
        """The share of all pairs of blocks that are visited, going by queries and going by keys."""
        pairs = self.keys.size * self.queries.shape[1]
        return float(self.keys.sum()) / pairs, float(self.queries.sum()) / pairs


def even_block(slots: int, step: int, limit: int) -> int:
    """The block from half of `limit` to `limit` slots that pads a row of `slots` least.

    A multiple of `step`; of equals the largest. A row shorter than `limit` is one block.
    """
    if slots <= limit:
        return padded(slots, step)
    sizes = range(limit - limit % step, limit // 2 - 1, -step)
    return min(sizes, key=lambda block: padded(slots, block))


def padded(slots: int, block: int) -> int:
    """`slots`, at least one, rounded up to whole blocks."""
    return -(-max(slots, 1) // block) * block


def pad_slots(array: Shaped[Array, "r s *k"], block: int, fill: int = 0) -> Shaped[Array, "r t *k"]:
    """The row filled up to whole blocks."""
    slots = array.shape[1]
    widths = [(0, 0), (0, padded(slots, block) - slots)] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, widths, constant_values=fill)


def block_ranges(query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], blocks: Blocks) -> Ranges:
    """The ranges of rows. Segments may come in any order, the ranges are only tight where they are contiguous."""
    query_low, query_high = _bounds(query_segments, blocks.query)
    key_low, key_high = _bounds(key_segments, blocks.key)
    meet = (query_low[:, :, None] <= key_high[:, None]) & (key_low[:, None] <= query_high[:, :, None])
    fetched = None
    if blocks.fetched > 1:
        together = Blocks(blocks.query * blocks.fetched, blocks.key * blocks.fetched)
        fetched = block_ranges(query_segments, key_segments, together)
    return Ranges(*_hull(meet), *_hull(meet.swapaxes(1, 2)), fetched, blocks)


def _bounds(segments: Int[Array, "r s"], block: int) -> tuple[Int[Array, "r i"], Int[Array, "r i"]]:
    """Lowest and highest segment of each block; a block of nothing but padding meets no other."""
    blocked = pad_slots(segments, block).reshape(segments.shape[0], -1, block).astype(jnp.int32)
    return jnp.where(blocked > 0, blocked, _NOTHING).min(axis=2), jnp.where(blocked > 0, blocked, -1).max(axis=2)


def _hull(meet: Bool[Array, "r i j"]) -> tuple[Int[Array, "r i"], Int[Array, "r i"]]:
    """First and number of the blocks from the first met to the last."""
    first = jnp.argmax(meet, axis=2).astype(jnp.int32)
    last = meet.shape[2] - 1 - jnp.argmax(meet[:, :, ::-1], axis=2).astype(jnp.int32)
    return first, jnp.where(meet.any(axis=2), last - first + 1, 0)
