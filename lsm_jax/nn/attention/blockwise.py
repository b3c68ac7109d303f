"""Segment attention in plain XLA: online softmax over blocks, memory linear in the row, unseen blocks not visited.

A row is cut where its segments are (`pieces.py`), and blocks are read from the very slot on at which a piece begins to
see; all heads of a block are computed together, whose products then reach the rate of large ones. Scores stand
transposed, keys down and queries across: maxima and sums over keys then run along whole vectors of queries, which is
what XLA makes fast on a CPU. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691); the backward pass is one pass over
pieces of keys.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsm_jax.nn.attention.blocked import Operands, with_gradient
from lsm_jax.nn.attention.pieces import Pieces
from lsm_jax.nn.attention.ranges import Blocks, even_block
from lsm_jax.nn.attention.reference import NEVER

_UNKNOWN, _UNASKED = 0, -1  # segments of a block's slots that are none of its own: no query there sees a key
_ONE, _PACKED = 4096, 16384  # slots: no more than of one window of a day; no more than rows of visible tokens have
_Gradients = tuple[Array, Array, Array]  # of queries, keys and values


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Blocks whose scores stay in a core's own cache, and small ones where a row holds many short segments.

    The last block of a segment is part empty. Of 3,744 slots of one segment the large ones are a tenth faster; of eight
    segments in 6,144 slots the small ones are. The longest rows hold whole windows again: a decoder's over every
    position. Products are quickest in multiples of 64 queries.
    """
    if _ONE < max(query_slots, key_slots) <= _PACKED:
        return Blocks(min(128, query_slots), min(160, key_slots))
    return Blocks(min(even_block(query_slots, 64, 384), query_slots), min(even_block(key_slots, 16, 288), key_slots))


def _forward(operands: Operands[Pieces]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h s"]]:
    query, key, value, query_segments, key_segments, pieces = operands
    side = pieces.queries
    rows, slots, heads, width = query.shape

    def attend(row: Int[Array, ""], piece: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        start, first = side.start[row, piece], side.first[row, piece]
        asked = _heads(query, row, start, side.size)
        segments = _segments(query_segments, row, start, side.size, side.start[row, piece + 1], _UNASKED)

        def visit(block: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, attended = carry
            place = first + block * side.across
            scores = _scores(_heads(key, row, place, side.across), asked)
            known = _segments(key_segments, row, place, side.across, key.shape[1], _UNKNOWN)
            scores = jnp.where(known[:, None] == segments, scores, NEVER)
            # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
            higher = jnp.maximum(highest, scores.max(axis=1))
            weights = jnp.exp(scores - higher[:, None])
            shrunk = jnp.exp(highest - higher)
            gained = _over_keys(_heads(value, row, place, side.across), weights.astype(value.dtype))
            return higher, total * shrunk + weights.sum(axis=1), attended * shrunk[:, None] + gained

        nothing = (
            jnp.full((heads, side.size), 0.5 * NEVER, jnp.float32),
            jnp.zeros((heads, side.size), jnp.float32),
            jnp.zeros((heads, width, side.size), jnp.float32),
        )
        highest, total, attended = jax.lax.fori_loop(0, side.blocks[row, piece], visit, nothing)
        out, log_total = done
        seeing = total > 0
        total = jnp.where(seeing, total, 1)
        out = _added(out, jnp.moveaxis(attended / total[:, None], 2, 0), 1, row, start)
        return out, _added(log_total, jnp.where(seeing, highest + jnp.log(total), 0), 2, row, start)

    def attend_row(row: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, side.count[row], functools.partial(attend, row), done)

    nothing = jnp.zeros_like(query), jnp.zeros((rows, heads, slots), jnp.float32)
    return jax.lax.fori_loop(0, rows, attend_row, nothing)


def _backward(
    operands: Operands[Pieces],
    log_total: Float[Array, "r h s"],
    gradient: Float[Array, "r s h d"],
    given: Float[Array, "r h s"],
) -> tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]:
    query, key, value, query_segments, key_segments, pieces = operands
    side = pieces.keys
    rows, slots, heads, width = query.shape

    def collect(row: Int[Array, ""], piece: Int[Array, ""], done: _Gradients) -> _Gradients:
        start, first = side.start[row, piece], side.first[row, piece]
        segments = _segments(key_segments, row, start, side.size, side.start[row, piece + 1], _UNKNOWN)[:, None]
        known, told = (_heads(each, row, start, side.size) for each in (key, value))
        across = known.swapaxes(1, 2)

        def visit(block: Int[Array, ""], carry: _Gradients) -> _Gradients:
            to_queries, to_key, to_value = carry
            place = first + block * side.across
            asked, wanted = (_heads(each, row, place, side.across) for each in (query, gradient))
            seen = segments == _segments(query_segments, row, place, side.across, slots, _UNASKED)
            scores = _scores(known, asked) - _figures(log_total, row, place, side.across)
            weights = jnp.exp(jnp.where(seen, scores, NEVER))
            to_value += _product(weights.astype(value.dtype), wanted)
            to_weights = _scores(told, wanted) - _figures(given, row, place, side.across)
            to_scores = (weights * to_weights).astype(value.dtype)
            to_key += _product(to_scores, asked)
            return _added(to_queries, _product(across, to_scores), 3, row, place), to_key, to_value

        nothing = jnp.zeros(known.shape, jnp.float32)
        to_queries, *to_both = done
        carry = to_queries, nothing, nothing
        to_queries, *of_piece = jax.lax.fori_loop(0, side.blocks[row, piece], visit, carry)
        to_both = [_added(to, of.swapaxes(0, 1), 1, row, start) for to, of in zip(to_both, of_piece, strict=True)]
        return to_queries, *to_both

    def collect_row(row: Int[Array, ""], done: _Gradients) -> _Gradients:
        return jax.lax.fori_loop(0, side.count[row], functools.partial(collect, row), done)

    # Slots last, as a product of heads leaves them.
    nothing = jnp.zeros((rows, heads, width, slots), jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    to_query, to_key, to_value = jax.lax.fori_loop(0, rows, collect_row, nothing)
    return jnp.moveaxis(to_query, 3, 1).astype(query.dtype), to_key, to_value


blockwise = with_gradient(_forward, _backward)


def _start(place: Int[Array, ""], size: int, slots: int) -> Int[Array, ""]:
    """Where a block that is to begin at `place` is read: earlier where it would reach over the end of the row."""
    return jnp.minimum(place, slots - size)


def _heads(tokens: Float[Array, "r s h d"], row: Array, place: Array, size: int) -> Float[Array, "h b d"]:
    """A block of a row, head by head."""
    _, slots, heads, width = tokens.shape
    start = _start(place, size, slots)
    return jax.lax.dynamic_slice(tokens, (row, start, 0, 0), (1, size, heads, width))[0].swapaxes(0, 1)


def _segments(
    segments: Int[Array, "r s"], row: Array, place: Array, size: int, end: int | Array, nothing: int
) -> Int[Array, " b"]:
    """Those of a block, `nothing` for slots before `place`, which other blocks hold, and from `end` on."""
    start = _start(place, size, segments.shape[1])
    slot = start + jnp.arange(size)
    block = jax.lax.dynamic_slice(segments, (row, start), (1, size))[0]
    return jnp.where((slot >= place) & (slot < end), block, nothing)


def _figures(figures: Float[Array, "r h s"], row: Array, place: Array, size: int) -> Float[Array, "h 1 b"]:
    """A figure of each query of a block, for all keys."""
    _, heads, slots = figures.shape
    start = _start(place, size, slots)
    return jax.lax.dynamic_slice(figures, (row, 0, start), (1, heads, size)).swapaxes(0, 1)


def _added(total: Array, block: Array, axis: int, row: Int[Array, ""], place: Int[Array, ""]) -> Array:
    """A total [R, ...] with a block of one row added, along an axis of slots."""
    at = [jnp.zeros_like(row)] * total.ndim
    at[0], at[axis] = row, _start(place, block.shape[axis - 1], total.shape[axis])
    before = jax.lax.dynamic_slice(total, at, (1, *block.shape))
    return jax.lax.dynamic_update_slice(total, before + block[None].astype(total.dtype), at)


def _product(left: Float[Array, "h m k"], right: Float[Array, "h k n"]) -> Float[Array, "h m n"]:
    """In float32, whatever is multiplied."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _over_keys(left: Float[Array, "h k m"], right: Float[Array, "h k n"]) -> Float[Array, "h m n"]:
    """The same, summed over the keys that both have first."""
    return jnp.einsum("hkm,hkn->hmn", left, right, preferred_element_type=jnp.float32)


def _scores(key: Float[Array, "h k d"], query: Float[Array, "h q d"]) -> Float[Array, "h k q"]:
    """The same, of every key with every query."""
    return jnp.einsum("hkd,hqd->hkq", key, query, preferred_element_type=jnp.float32)
