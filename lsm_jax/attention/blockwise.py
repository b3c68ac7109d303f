"""Segment attention in plain XLA: online softmax over blocks, memory linear in the row, unseen blocks not visited.

A row is cut where its segments are (`pieces.py`), and blocks are read from the very slot on at which a piece begins to
see. Scores stand transposed, keys down and queries across: maxima and sums over keys then run along whole vectors of
queries, which is what XLA makes fast on a CPU. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691); the backward pass
is one pass over pieces of keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from lsm_jax.attention.blocked import Operands, with_gradient
from lsm_jax.attention.pieces import Pieces
from lsm_jax.attention.ranges import Blocks, even_block, padded
from lsm_jax.attention.reference import NEVER

_LONG = 4096  # slots: more than one window of a day has tokens
_Gradients = tuple[Array, Array, Array]  # of queries, keys and values


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Blocks whose scores stay in a core's own cache, and small ones where long rows hold many segments.

    The last block of a segment is part empty. Of 3,744 slots of one segment the large ones are a tenth faster; of eight
    segments in 6,528 slots the small ones are a quarter, and 160 slots are faster than 128, 144, 176 and 192.
    """
    if max(query_slots, key_slots) > _LONG:
        return Blocks(*(min(160, padded(slots, 16)) for slots in (query_slots, key_slots)))
    return Blocks(even_block(query_slots, 16, 512), even_block(key_slots, 16, 288))


def _forward(operands: Operands[Pieces]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h s"]]:
    query, key, value, query_segments, key_segments, pieces = operands
    side = pieces.queries
    rows, slots, heads, _ = query.shape
    queries, asking = _open_ended(query, side.size), _open_ended_segments(query_segments, side.size, -1)
    keys, values = _open_ended(key, side.across), _open_ended(value, side.across)
    known = _open_ended_segments(key_segments, side.across)

    def attend(row: Int[Array, ""], at: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        piece, head = at // heads, at % heads
        start, first = side.start[row, piece], side.first[row, piece]
        asked = _lines(queries, row, head, start, side.size).T
        segments = _slots(asking, row, start, side.size)

        def visit(block: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, attended = carry
            place = first + block * side.across
            scores = _product(_lines(keys, row, head, place, side.across), asked)
            seen = _slots(known, row, place, side.across)[:, None] == segments
            scores = jnp.where(seen, scores, NEVER)
            # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
            higher = jnp.maximum(highest, scores.max(axis=0))
            weights = jnp.exp(scores - higher)
            shrunk = jnp.exp(highest - higher)
            gained = _over_keys(_lines(values, row, head, place, side.across), weights.astype(value.dtype))
            return higher, total * shrunk + weights.sum(axis=0), attended * shrunk + gained

        nothing = (
            jnp.full(side.size, 0.5 * NEVER, jnp.float32),
            jnp.zeros(side.size, jnp.float32),
            jnp.zeros(asked.shape, jnp.float32),
        )
        highest, total, attended = jax.lax.fori_loop(0, side.blocks[row, piece], visit, nothing)
        total = jnp.where(total > 0, total, 1)
        out, log_total = done
        # What a piece writes beyond its segment the next one, which begins there, writes anew.
        out = jax.lax.dynamic_update_slice(out, (attended / total).astype(out.dtype)[None, None], (row, head, 0, start))
        log_total = jax.lax.dynamic_update_slice(log_total, (highest + jnp.log(total))[None, None], (row, head, start))
        return out, log_total

    def attend_row(row: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, side.count[row] * heads, lambda at, done: attend(row, at, done), done)

    across = (*queries.shape[:2], queries.shape[3], queries.shape[2])
    nothing = jnp.zeros(across, query.dtype), jnp.zeros((rows, heads, across[3]), jnp.float32)
    out, log_total = jax.lax.fori_loop(0, rows, attend_row, nothing)
    return jnp.moveaxis(out[..., :slots], 3, 1), log_total[..., :slots]


def _backward(
    operands: Operands[Pieces],
    log_total: Float[Array, "r h s"],
    gradient: Float[Array, "r s h d"],
    given: Float[Array, "r h s"],
) -> tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]:
    query, key, value, query_segments, key_segments, pieces = operands
    side = pieces.keys
    rows, slots, heads, _ = query.shape
    queries, gradients = _open_ended(query, side.across), _open_ended(gradient, side.across)
    asking = _open_ended_segments(query_segments, side.across, -1)
    log_total, given = (jnp.pad(each, ((0, 0), (0, 0), (0, side.across))) for each in (log_total, given))
    keys, values = _open_ended(key, side.size), _open_ended(value, side.size)
    known = _open_ended_segments(key_segments, side.size)

    def collect(
        row: Int[Array, ""], at: Int[Array, ""], done: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        piece, head = at // heads, at % heads
        start, first = side.start[row, piece], side.first[row, piece]
        own = start + jnp.arange(side.size) < side.start[row, piece + 1]  # the slots beyond are the next piece's
        segments = jnp.where(own, _slots(known, row, start, side.size), 0)[:, None]
        known_key, told = (_lines(each, row, head, start, side.size) for each in (keys, values))

        def visit(block: Int[Array, ""], carry: _Gradients) -> _Gradients:
            to_queries, to_key, to_value = carry
            place = first + block * side.across
            asked, wanted = (_lines(each, row, head, place, side.across) for each in (queries, gradients))
            seen = segments == _slots(asking, row, place, side.across)
            scores = _product(known_key, asked.T) - _of_queries(log_total, row, head, place, side.across)
            weights = jnp.exp(jnp.where(seen, scores, NEVER))
            to_value += _product(weights.astype(value.dtype), wanted)
            to_weights = _product(told, wanted.T) - _of_queries(given, row, head, place, side.across)
            to_scores = (weights * to_weights).astype(value.dtype)
            to_key += _product(to_scores, asked)
            to_query = _over_keys(known_key, to_scores) + _columns(to_queries, row, head, place, side.across)
            to_queries = jax.lax.dynamic_update_slice(to_queries, to_query[None, None], (row, head, 0, place))
            return to_queries, to_key, to_value

        nothing = jnp.zeros(known_key.shape, jnp.float32)
        to_queries, to_keys, to_values = done
        carry = to_queries, nothing, nothing
        to_queries, to_key, to_value = jax.lax.fori_loop(0, side.blocks[row, piece], visit, carry)
        place = row, head, start, 0
        to_keys = jax.lax.dynamic_update_slice(to_keys, to_key.astype(key.dtype)[None, None], place)
        to_values = jax.lax.dynamic_update_slice(to_values, to_value.astype(value.dtype)[None, None], place)
        return to_queries, to_keys, to_values

    def collect_row(row: Int[Array, ""], done: _Gradients) -> _Gradients:
        return jax.lax.fori_loop(0, side.count[row] * heads, lambda at, done: collect(row, at, done), done)

    across = jnp.zeros((*queries.shape[:2], queries.shape[3], queries.shape[2]), jnp.float32)
    nothing = across, jnp.zeros(keys.shape, key.dtype), jnp.zeros(keys.shape, value.dtype)
    to_query, to_key, to_value = jax.lax.fori_loop(0, rows, collect_row, nothing)
    to_query = jnp.moveaxis(to_query[..., :slots], 3, 1).astype(query.dtype)
    return to_query, *(each[:, :, : key.shape[1]].swapaxes(1, 2) for each in (to_key, to_value))


blockwise = with_gradient(_forward, _backward)


def _open_ended_segments(segments: Int[Array, "r s"], size: int, fill: int = 0) -> Int[Array, "r s+size"]:
    """Segments with room for a block that begins anywhere in the row."""
    return jnp.pad(segments, ((0, 0), (0, size)), constant_values=fill)


def _open_ended(tokens: Float[Array, "r s h d"], size: int) -> Float[Array, "r h s+size d"]:
    """Heads one after the other, with room for a block that begins anywhere in the row."""
    return jnp.pad(tokens.swapaxes(1, 2), ((0, 0), (0, 0), (0, size), (0, 0)))


def _lines(tokens: Shaped[Array, "r h s d"], row: Array, head: Array, place: Array, size: int) -> Shaped[Array, "b d"]:
    width = tokens.shape[3]
    return jax.lax.dynamic_slice(tokens, (row, head, place, 0), (1, 1, size, width)).reshape(size, width)


def _columns(
    tokens: Shaped[Array, "r h d s"], row: Array, head: Array, place: Array, size: int
) -> Shaped[Array, "d b"]:
    width = tokens.shape[2]
    return jax.lax.dynamic_slice(tokens, (row, head, 0, place), (1, 1, width, size)).reshape(width, size)


def _of_queries(figures: Float[Array, "r h s"], row: Array, head: Array, place: Array, size: int) -> Float[Array, " b"]:
    return jax.lax.dynamic_slice(figures, (row, head, place), (1, 1, size)).reshape(size)


def _slots(segments: Int[Array, "r s"], row: Array, place: Array, size: int) -> Int[Array, " b"]:
    return jax.lax.dynamic_slice(segments, (row, place), (1, size)).reshape(size)


def _product(left: Float[Array, "m k"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """In float32, whatever is multiplied."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _over_keys(left: Float[Array, "k m"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
