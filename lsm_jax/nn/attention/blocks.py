"""Block sparsity: which pairs of a query block and a key block have to be computed.

A block mask is a pure function of the segment ids. A transformer stack computes it once and gives it to all its layers.
It may list too many pairs but never too few: within a block the segment ids decide which query sees which key.

There are two kinds. `BlockRanges` has blocks on a fixed grid, for the Pallas kernels. `SegmentTiles` has tiles that
begin where a segment begins, for `blockwise`, which can read a row from any slot. On a grid a block straddles the ends
of segments: with 800 tokens to a segment, a third of what is computed belongs to no pair.

Segment ids: outside this package padding is 0, for queries and for keys, and segments are numbered from 1.
`mark_padding` gives the implementations -1 for padded queries, so that `query_id == key_id` alone is the mask and no
padded query sees a padded key.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

QUERY_PADDING, KEY_PADDING = -1, 0  # segment ids of padding inside this package
_STATIC = {"static": True}  # fields that are not arrays
_INT32_MAX = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Slots in a block of queries and in a block of keys.

    Attributes:
      blocks_per_fetch: blocks of a side that are copied from main memory together.
    """

    query: int
    key: int
    blocks_per_fetch: int = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockRanges:
    """For each block of a row the range of blocks of the other side that it is computed with.

    Attributes:
      first_key_block, num_key_blocks: by query block; for the forward pass and dq.
      first_query_block, num_query_blocks: by key block; for dk and dv.
      fetches: the same ranges in units of `blocks_per_fetch` blocks; None where that is 1.
    """

    first_key_block: Int[Array, "r i"]
    num_key_blocks: Int[Array, "r i"]
    first_query_block: Int[Array, "r j"]
    num_query_blocks: Int[Array, "r j"]
    fetches: BlockRanges | None
    block_sizes: BlockSizes = dataclasses.field(metadata=_STATIC)

    @property
    def computed_fractions(self) -> tuple[float, float]:
        """Fraction of all block pairs that are computed, in loops over query blocks and over key blocks."""
        pairs = self.num_key_blocks.size * self.num_query_blocks.shape[1]
        return float(self.num_key_blocks.sum()) / pairs, float(self.num_query_blocks.sum()) / pairs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of one side (queries or keys), and the blocks of the other side that each is computed with.

    Attributes:
      count: number of tiles in a row.
      start: first slot of each tile, ascending; the row's length after the last tile. A tile ends after `size` slots or
        where the next one starts.
      other_start: first slot of the other side that the tile attends to.
      num_other_blocks: number of blocks of `other_block_size` slots from there.
    """

    count: Int[Array, " r"]
    start: Int[Array, "r p+1"]
    other_start: Int[Array, "r p"]
    num_other_blocks: Int[Array, "r p"]
    size: int = dataclasses.field(metadata=_STATIC)
    other_block_size: int = dataclasses.field(metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentTiles:
    """Tiles of queries, for the forward pass, and of keys, for the backward pass. Each holds slots of one segment.

    Attributes:
      slots: of queries and of keys in a row.
    """

    queries: Tiles
    keys: Tiles
    slots: tuple[int, int] = dataclasses.field(metadata=_STATIC)

    @property
    def computed_fractions(self) -> tuple[float, float]:
        """As `BlockRanges.computed_fractions`."""
        by_query, by_key = (
            float(tiles.num_other_blocks.sum())
            / (tiles.count.size * num_blocks(own, tiles.size) * num_blocks(other, tiles.other_block_size))
            for tiles, own, other in ((self.queries, *self.slots), (self.keys, *self.slots[::-1]))
        )
        return by_query, by_key


BlockMask: TypeAlias = BlockRanges | SegmentTiles


@dataclasses.dataclass(frozen=True)
class BlockSparsity:
    """What an implementation computes for given segments, for FLOP accounting.

    Attributes:
      slots: of queries and of keys, padded to whole blocks, as the kernels get them.
      by_query, by_key: fraction of block pairs computed by kernels that loop over query blocks and over key blocks.
      products: matrix products per block pair, by kernel; masked pairs within a block cost as much as others.
    """

    slots: tuple[int, int]
    by_query: float
    by_key: float
    products: Mapping[str, int]


def mark_padding(
    query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"]
) -> tuple[Int[Array, "r s"], Int[Array, "r t"]]:
    """Segment ids with `QUERY_PADDING` and `KEY_PADDING` in place of 0."""
    return jnp.where(query_segments > 0, query_segments, QUERY_PADDING), jnp.maximum(key_segments, KEY_PADDING)


def zero_padding(heads: Shaped[Array, "r s h d"], segments: Int[Array, "r s"]) -> Shaped[Array, "r s h d"]:
    """Heads with zeros in padding, whatever was there."""
    return jnp.where((segments > 0)[:, :, None, None], heads, 0)


def num_blocks(slots: int, block: int) -> int:
    """Number of blocks that hold `slots` slots; at least one."""
    return -(-max(slots, 1) // block)


def padded_length(slots: int, block: int) -> int:
    """`slots`, at least one, rounded up to whole blocks."""
    return num_blocks(slots, block) * block


def pad_to_blocks(array: Shaped[Array, "r s *k"], block: int, fill: int = 0) -> Shaped[Array, "r t *k"]:
    """Pads axis 1 to whole blocks."""
    slots = array.shape[1]
    widths = [(0, 0), (0, padded_length(slots, block) - slots)] + [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, widths, constant_values=fill)


def even_block(slots: int, step: int, limit: int) -> int:
    """The block size from `limit` / 2 to `limit`, a multiple of `step`, that pads a row of `slots` least.

    Of equals the largest. A row shorter than `limit` is one block.
    """
    if slots <= limit:
        return padded_length(slots, step)
    sizes = range(limit - limit % step, limit // 2 - 1, -step)
    return min(sizes, key=lambda block: padded_length(slots, block))


def block_ranges(
    query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], block_sizes: BlockSizes
) -> BlockRanges:
    """The block ranges of rows. Segments may be in any order; the ranges are tight where they are contiguous."""
    query_low, query_high = _bounds(query_segments, block_sizes.query)
    key_low, key_high = _bounds(key_segments, block_sizes.key)
    overlap = (query_low[:, :, None] <= key_high[:, None]) & (key_low[:, None] <= query_high[:, :, None])
    fetches = None
    if (together := block_sizes.blocks_per_fetch) > 1:
        fetched_sizes = BlockSizes(block_sizes.query * together, block_sizes.key * together)
        fetches = block_ranges(query_segments, key_segments, fetched_sizes)
    return BlockRanges(*_hull(overlap), *_hull(overlap.swapaxes(1, 2)), fetches, block_sizes)


def _bounds(segments: Int[Array, "r s"], block: int) -> tuple[Int[Array, "r i"], Int[Array, "r i"]]:
    """Lowest and highest segment id of each block. A block of padding gets bounds that overlap no others."""
    blocks = pad_to_blocks(segments, block).reshape(segments.shape[0], -1, block).astype(jnp.int32)
    return jnp.where(blocks > 0, blocks, _INT32_MAX).min(axis=2), jnp.where(blocks > 0, blocks, -1).max(axis=2)


def _hull(overlap: Bool[Array, "r i j"]) -> tuple[Int[Array, "r i"], Int[Array, "r i"]]:
    """For each i the first j that overlaps, and the number of blocks from there to the last."""
    first = jnp.argmax(overlap, axis=2).astype(jnp.int32)
    last = overlap.shape[2] - 1 - jnp.argmax(overlap[:, :, ::-1], axis=2).astype(jnp.int32)
    return first, jnp.where(overlap.any(axis=2), last - first + 1, 0)


def segment_tiles(
    query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], block_sizes: BlockSizes
) -> SegmentTiles:
    """The tiles of rows. Segments may be in any order; where they are not contiguous there are more tiles."""

    def tiles(own: Int[Array, "r s"], other: Int[Array, "r t"], size: int, other_block_size: int) -> Tiles:
        of_row = functools.partial(_tiles_of_row, size=size, other_block_size=other_block_size)
        return Tiles(*jax.vmap(of_row)(own, other), size, other_block_size)

    return SegmentTiles(
        queries=tiles(query_segments, key_segments, block_sizes.query, block_sizes.key),
        keys=tiles(key_segments, query_segments, block_sizes.key, block_sizes.query),
        slots=(query_segments.shape[1], key_segments.shape[1]),
    )


def _tiles_of_row(
    own: Int[Array, " s"], other: Int[Array, " t"], size: int, other_block_size: int
) -> tuple[Int[Array, ""], Int[Array, " p+1"], Int[Array, " p"], Int[Array, " p"]]:
    """`count`, `start`, `other_start` and `num_other_blocks` of one row."""
    slots = own.shape[0]
    slot, is_token = jnp.arange(slots, dtype=jnp.int32), own > 0
    latest_token = jax.lax.cummax(jnp.where(is_token, slot, -1))
    previous_token = jnp.concatenate([jnp.full(1, -1, jnp.int32), latest_token[:-1]])
    begins = is_token & ((previous_token < 0) | (own != own[previous_token]))
    run_start = jax.lax.cummax(jnp.where(begins, slot, -1))
    next_token = jax.lax.cummin(jnp.where(is_token, slot, slots), reverse=True)
    # A run is cut every `size` slots. Padding within a run may fill a whole tile, which is then left out.
    reached = jnp.minimum(next_token, slots - 1)
    holds_token = (next_token < jnp.minimum(slot + size, slots)) & (run_start[reached] == run_start)
    starts = (run_start >= 0) & ((slot - run_start) % size == 0) & holds_token
    start = jnp.nonzero(starts, size=slots + 1, fill_value=slots)[0].astype(jnp.int32)
    count = starts.sum(dtype=jnp.int32)
    other_slot = jnp.arange(other.shape[0], dtype=jnp.int32)

    def attends_to(tile: Int[Array, ""], found: tuple[Array, Array]) -> tuple[Array, Array]:
        same = other == own[next_token[start[tile]]]
        first = jnp.where(same, other_slot, other.shape[0]).min()
        last = jnp.where(same, other_slot, -1).max()
        blocks = jnp.where(last < 0, 0, (last - first + other_block_size) // other_block_size)
        return found[0].at[tile].set(jnp.where(last < 0, 0, first)), found[1].at[tile].set(blocks)

    nothing = jnp.zeros(slots, jnp.int32)
    return count, start, *jax.lax.fori_loop(0, count, attends_to, (nothing, nothing))
