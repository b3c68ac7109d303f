"""Rows cut where their segments are: pieces of one segment each, and exactly where the other side's slots begin.

Blocks on a fixed grid straddle segments and see beyond them: with a day's eight hundred tokens to a segment, a third of
what they compute is of no pair. An implementation that can read a row from any slot on starts a piece with its segment,
and the first block of the other side with the first slot seen. Pure functions
of the segments, the same for every layer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lsm_jax.nn.attention.ranges import Blocks, padded


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["count", "start", "first", "blocks"], meta_fields=["size", "across"]
)
@dataclass(frozen=True)
class Side:
    """The pieces of queries, or of keys, and what each sees of the other side.

    Attributes:
      count: pieces of a row.
      start: slot at which each begins, ascending; from `count` on the row's length. A piece ends after `size` slots, or
        where the next one starts.
      first, blocks: the slot of the other side at which it begins to see, and the blocks from there.
      size, across: slots to a piece and to a block of the other side.
    """

    count: Int[Array, " r"]
    start: Int[Array, "r p+1"]
    first: Int[Array, "r p"]
    blocks: Int[Array, "r p"]
    size: int
    across: int

    def visited(self, own: int, other: int) -> float:
        """The share of all pairs of blocks, of rows of so many slots on this and on the other side."""
        pairs = self.count.size * padded(own, self.size) // self.size * padded(other, self.across) // self.across
        return float(self.blocks.sum()) / pairs


@functools.partial(jax.tree_util.register_dataclass, data_fields=["queries", "keys"], meta_fields=["slots"])
@dataclass(frozen=True)
class Pieces:
    """Pieces of both sides: those of queries for the forward pass, those of keys for the backward pass.

    Attributes:
      slots: of queries and of keys in a row.
    """

    queries: Side
    keys: Side
    slots: tuple[int, int]

    @property
    def visited(self) -> tuple[float, float]:
        """The share of all pairs of blocks that are computed, going by queries and going by keys."""
        queries, keys = self.slots
        return self.queries.visited(queries, keys), self.keys.visited(keys, queries)


def cut(query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], blocks: Blocks) -> Pieces:
    """The pieces of rows. Segments may come in any order; where they are not contiguous there are more pieces."""
    slots = query_segments.shape[1], key_segments.shape[1]
    return Pieces(
        queries=_side(query_segments, key_segments, blocks.query, blocks.key),
        keys=_side(key_segments, query_segments, blocks.key, blocks.query),
        slots=slots,
    )


def _side(own: Int[Array, "r s"], other: Int[Array, "r t"], size: int, across: int) -> Side:
    found = jax.vmap(functools.partial(_pieces, size=size, across=across))(own, other)
    return Side(*found, size, across)


def _pieces(
    own: Int[Array, " s"], other: Int[Array, " t"], size: int, across: int
) -> tuple[Int[Array, ""], Int[Array, " p+1"], Int[Array, " p"], Int[Array, " p"]]:
    """Count, starts, first slots seen and blocks of one row."""
    slots = own.shape[0]
    place, token = jnp.arange(slots, dtype=jnp.int32), own > 0
    latest = jax.lax.cummax(jnp.where(token, place, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), latest[:-1]])
    begins = token & ((before < 0) | (own != own[before]))
    run = jax.lax.cummax(jnp.where(begins, place, -1))
    following = jax.lax.cummin(jnp.where(token, place, slots), reverse=True)
    # Of the run's stretches of `size` slots those that hold a token; a hole in a row may swallow a whole one.
    reached = jnp.minimum(following, slots - 1)
    holds = (following < jnp.minimum(place + size, slots)) & (run[reached] == run)
    starts = (run >= 0) & ((place - run) % size == 0) & holds
    start = jnp.nonzero(starts, size=slots + 1, fill_value=slots)[0].astype(jnp.int32)
    count = starts.sum(dtype=jnp.int32)
    there = jnp.arange(other.shape[0], dtype=jnp.int32)

    def see(piece: Int[Array, ""], seen: tuple[Array, Array]) -> tuple[Array, Array]:
        alike = other == own[following[start[piece]]]
        first = jnp.where(alike, there, other.shape[0]).min()
        last = jnp.where(alike, there, -1).max()
        blocks = jnp.where(last < 0, 0, (last - first + across) // across)
        return seen[0].at[piece].set(jnp.where(last < 0, 0, first)), seen[1].at[piece].set(blocks)

    nothing = jnp.zeros(slots, jnp.int32)
    return count, start, *jax.lax.fori_loop(0, count, see, (nothing, nothing))
