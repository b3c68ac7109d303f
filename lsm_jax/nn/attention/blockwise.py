"""Flash attention in plain XLA, for any platform: memory linear in the row, unseen blocks not computed.

Queries and keys are cut into tiles of one segment each (`blocks.SegmentTiles`). The forward pass loops over tiles of
queries, the backward pass over tiles of keys. All heads of a tile are computed together, because small matrix products
are slow. Scores are [H, keys, queries]: maxima and sums over keys are then operations on whole vectors of queries,
which is what XLA makes fast on a CPU. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsm_jax.nn.attention.blocks import KEY_PADDING, QUERY_PADDING, BlockSizes, SegmentTiles, even_block
from lsm_jax.nn.attention.flash import MASK_VALUE, Gradients, Inputs, flash_attention

_LONGEST_DAY, _LONGEST_PACKED = 4096, 16384  # slots in a row of one window, and in a row of packed visible tokens
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
_matmul = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def block_sizes(query_slots: int, key_slots: int, head_size: int) -> BlockSizes:  # noqa: ARG001
    """Large blocks, whose scores still fit a core's own cache, or small ones where a row holds many short segments.

    The last block of a segment is partly empty, which costs more with large blocks. Large ones are a tenth faster for
    one segment of 3,744 slots, small ones for eight segments in 6,144 slots. The longest rows hold whole windows again:
    those of a decoder over every position. Products are fastest with multiples of 64 queries.
    """
    if _LONGEST_DAY < max(query_slots, key_slots) <= _LONGEST_PACKED:
        return BlockSizes(min(128, query_slots), min(160, key_slots))
    query_block, key_block = even_block(query_slots, 64, 384), even_block(key_slots, 16, 288)
    return BlockSizes(min(query_block, query_slots), min(key_block, key_slots))


def _forward(inputs: Inputs[SegmentTiles]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h s"]]:
    query, key, value, query_segments, key_segments, block_mask = inputs
    tiles = block_mask.queries
    rows, slots, heads, width = query.shape

    def attend(row: Int[Array, ""], tile: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        start, other_start = tiles.start[row, tile], tiles.other_start[row, tile]
        q_block = _heads(query, row, start, tiles.size)
        q_segments = _segments(query_segments, row, start, tiles.size, tiles.start[row, tile + 1], QUERY_PADDING)

        def visit(block: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            row_max, row_sum, acc = carry
            at = other_start + block * tiles.other_block_size
            scores = _einsum("hkd,hqd->hkq", _heads(key, row, at, tiles.other_block_size), q_block)
            k_segments = _segments(key_segments, row, at, tiles.other_block_size, key.shape[1], KEY_PADDING)
            scores = jnp.where(k_segments[:, None] == q_segments, scores, MASK_VALUE)
            # `row_max` starts above `MASK_VALUE`, so that a query that has met no key yet has zero weights.
            new_max = jnp.maximum(row_max, scores.max(axis=1))
            weights = jnp.exp(scores - new_max[:, None])
            rescale = jnp.exp(row_max - new_max)
            v_block = _heads(value, row, at, tiles.other_block_size)
            gained = _einsum("hkd,hkq->hdq", v_block, weights.astype(value.dtype))
            return new_max, row_sum * rescale + weights.sum(axis=1), acc * rescale[:, None] + gained

        nothing = (
            jnp.full((heads, tiles.size), 0.5 * MASK_VALUE, jnp.float32),
            jnp.zeros((heads, tiles.size), jnp.float32),
            jnp.zeros((heads, width, tiles.size), jnp.float32),
        )
        row_max, row_sum, acc = jax.lax.fori_loop(0, tiles.num_other_blocks[row, tile], visit, nothing)
        out, lse = done
        has_key = row_sum > 0
        row_sum = jnp.where(has_key, row_sum, 1)
        out = _added(out, jnp.moveaxis(acc / row_sum[:, None], 2, 0), 1, row, start)
        return out, _added(lse, jnp.where(has_key, row_max + jnp.log(row_sum), 0), 2, row, start)

    def attend_row(row: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, tiles.count[row], functools.partial(attend, row), done)

    nothing = jnp.zeros_like(query), jnp.zeros((rows, heads, slots), jnp.float32)
    return jax.lax.fori_loop(0, rows, attend_row, nothing)


def _backward(inputs: Inputs[SegmentTiles], lse: Float[Array, "r h s"], do: Array, delta: Array) -> Gradients:
    query, key, value, query_segments, key_segments, block_mask = inputs
    tiles = block_mask.keys
    rows, slots, heads, width = query.shape

    def collect(row: Int[Array, ""], tile: Int[Array, ""], done: Gradients) -> Gradients:
        start, other_start = tiles.start[row, tile], tiles.other_start[row, tile]
        k_segments = _segments(key_segments, row, start, tiles.size, tiles.start[row, tile + 1], KEY_PADDING)[:, None]
        k_block, v_block = (_heads(each, row, start, tiles.size) for each in (key, value))
        k_transposed = k_block.swapaxes(1, 2)

        def visit(block: Int[Array, ""], carry: Gradients) -> Gradients:
            dq, dk_block, dv_block = carry
            at = other_start + block * tiles.other_block_size
            q_block, do_block = (_heads(each, row, at, tiles.other_block_size) for each in (query, do))
            seen = k_segments == _segments(query_segments, row, at, tiles.other_block_size, slots, QUERY_PADDING)
            scores = _einsum("hkd,hqd->hkq", k_block, q_block) - _per_query(lse, row, at, tiles.other_block_size)
            weights = jnp.exp(jnp.where(seen, scores, MASK_VALUE))
            dv_block += _matmul(weights.astype(value.dtype), do_block)
            d_weights = _einsum("hkd,hqd->hkq", v_block, do_block) - _per_query(delta, row, at, tiles.other_block_size)
            d_scores = (weights * d_weights).astype(value.dtype)
            dk_block += _matmul(d_scores, q_block)
            return _added(dq, _matmul(k_transposed, d_scores), 3, row, at), dk_block, dv_block

        nothing = jnp.zeros(k_block.shape, jnp.float32)
        dq, dk, dv = done
        carry = dq, nothing, nothing
        dq, dk_block, dv_block = jax.lax.fori_loop(0, tiles.num_other_blocks[row, tile], visit, carry)
        dk = _added(dk, dk_block.swapaxes(0, 1), 1, row, start)
        return dq, dk, _added(dv, dv_block.swapaxes(0, 1), 1, row, start)

    def collect_row(row: Int[Array, ""], done: Gradients) -> Gradients:
        return jax.lax.fori_loop(0, tiles.count[row], functools.partial(collect, row), done)

    # dq has slots last, as a product of heads leaves them.
    nothing = jnp.zeros((rows, heads, width, slots), jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    dq, dk, dv = jax.lax.fori_loop(0, rows, collect_row, nothing)
    return jnp.moveaxis(dq, 3, 1).astype(query.dtype), dk, dv


blockwise = flash_attention(_forward, _backward)


def _read_at(slot: Int[Array, ""], size: int, slots: int) -> Int[Array, ""]:
    """Where a block that begins at `slot` is read: earlier if it would reach over the end of the row."""
    return jnp.minimum(slot, slots - size)


def _heads(tokens: Float[Array, "r s h d"], row: Array, slot: Array, size: int) -> Float[Array, "h b d"]:
    """A block of a row."""
    _, slots, heads, width = tokens.shape
    start = _read_at(slot, size, slots)
    return jax.lax.dynamic_slice(tokens, (row, start, 0, 0), (1, size, heads, width))[0].swapaxes(0, 1)


def _segments(
    segments: Int[Array, "r s"], row: Array, slot: Array, size: int, end: int | Array, padding: int
) -> Int[Array, " b"]:
    """Segment ids of a block; `padding` for slots before `slot` and from `end` on, which belong to other blocks."""
    start = _read_at(slot, size, segments.shape[1])
    slots = start + jnp.arange(size)
    block = jax.lax.dynamic_slice(segments, (row, start), (1, size))[0]
    return jnp.where((slots >= slot) & (slots < end), block, padding)


def _per_query(values: Float[Array, "r h s"], row: Array, slot: Array, size: int) -> Float[Array, "h 1 b"]:
    """lse or delta of a block of queries."""
    _, heads, slots = values.shape
    start = _read_at(slot, size, slots)
    return jax.lax.dynamic_slice(values, (row, 0, start), (1, heads, size)).swapaxes(0, 1)


def _added(total: Array, block: Array, axis: int, row: Int[Array, ""], slot: Int[Array, ""]) -> Array:
    """`total` [R, ...] with a block of one row added, whose slots are along `axis`."""
    at = [jnp.zeros_like(row)] * total.ndim
    at[0], at[axis] = row, _read_at(slot, block.shape[axis - 1], total.shape[axis])
    before = jax.lax.dynamic_slice(total, at, (1, *block.shape))
    return jax.lax.dynamic_update_slice(total, before + block[None].astype(total.dtype), at)
