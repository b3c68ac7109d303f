"""Segment attention in plain XLA: online softmax over blocks, memory linear in the row, unseen blocks not visited.

Scores stand transposed, keys down and queries across: maxima and sums over keys then run along whole vectors of
queries, which is what XLA makes fast on a CPU. Blocks are cut out of the rows as they are visited, so that nothing is
spent on a block that is not. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691); the backward pass is one pass over
blocks of keys.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsm_jax.attention.blocked import Operands, with_gradient
from lsm_jax.attention.ranges import Blocks, even_block, pad_slots, padded
from lsm_jax.attention.reference import NEVER


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Blocks whose scores stay in a core's own cache."""
    return Blocks(even_block(query_slots, 16, 512), even_block(key_slots, 16, 288))


def _forward(operands: Operands) -> tuple[Float[Array, "r s h d"], Float[Array, "r h i q"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size = ranges.blocks
    rows, slots, heads, _ = query.shape
    queries, asking = pad_slots(query, size.query), pad_slots(query_segments, size.query, -1)
    keys, values, known = pad_slots(key, size.key), pad_slots(value, size.key), pad_slots(key_segments, size.key)
    number = queries.shape[1] // size.query

    def attend(at: Int[Array, ""], done: tuple[Array, Array]) -> tuple[Array, Array]:
        row, head, block = jnp.unravel_index(at, (rows, heads, number))
        asked = _cut(queries, row, block, head, size.query).T
        segments = _cut_segments(asking, row, block, size.query)

        def visit(place: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            highest, total, attended = carry
            scores = _dot(_cut(keys, row, place, head, size.key), asked, 1, 0)
            seen = _cut_segments(known, row, place, size.key)[:, None] == segments
            scores = jnp.where(seen, scores, NEVER)
            # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
            higher = jnp.maximum(highest, scores.max(axis=0))
            weights = jnp.exp(scores - higher)
            shrunk = jnp.exp(highest - higher)
            gained = _dot(_cut(values, row, place, head, size.key), weights.astype(value.dtype), 0, 0)
            return higher, total * shrunk + weights.sum(axis=0), attended * shrunk + gained

        start = (
            jnp.full(size.query, 0.5 * NEVER, jnp.float32),
            jnp.zeros(size.query, jnp.float32),
            jnp.zeros(asked.shape, jnp.float32),
        )
        first = ranges.first_key[row, block]
        highest, total, attended = jax.lax.fori_loop(first, first + ranges.keys[row, block], visit, start)
        total = jnp.where(total > 0, total, 1)
        out, log_total = done
        out = _paste(out, (attended / total).T.astype(out.dtype), row, block, head)
        return out, log_total.at[row, head, block].set(highest + jnp.log(total))

    nothing = jnp.zeros(queries.shape, query.dtype), jnp.zeros((rows, heads, number, size.query), jnp.float32)
    out, log_total = jax.lax.fori_loop(0, rows * heads * number, attend, nothing)
    return out[:, :slots], log_total


def _backward(
    operands: Operands,
    log_total: Float[Array, "r h i q"],
    gradient: Float[Array, "r s h d"],
    given: Float[Array, "r h s"],
) -> tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size = ranges.blocks
    rows, slots, heads, _ = query.shape
    given = jnp.pad(given, ((0, 0), (0, 0), (0, padded(slots, size.query) - slots))).reshape(log_total.shape)
    queries, asking = pad_slots(query, size.query), pad_slots(query_segments, size.query, -1)
    gradients = pad_slots(gradient, size.query)
    keys, values, known = pad_slots(key, size.key), pad_slots(value, size.key), pad_slots(key_segments, size.key)
    number = keys.shape[1] // size.key

    def collect(at: Int[Array, ""], done: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row, head, place = jnp.unravel_index(at, (rows, heads, number))
        known_key, told = _cut(keys, row, place, head, size.key), _cut(values, row, place, head, size.key)
        segments = _cut_segments(known, row, place, size.key)[:, None]

        def visit(block: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_queries, to_key, to_value = carry
            asked, wanted = _cut(queries, row, block, head, size.query), _cut(gradients, row, block, head, size.query)
            seen = segments == _cut_segments(asking, row, block, size.query)
            scores = _dot(known_key, asked, 1, 1) - log_total[row, head, block]
            weights = jnp.exp(jnp.where(seen, scores, NEVER))
            to_value += _dot(weights.astype(value.dtype), wanted, 1, 0)
            to_weights = _dot(told, wanted, 1, 1)
            to_scores = (weights * (to_weights - given[row, head, block])).astype(value.dtype)
            to_key += _dot(to_scores, asked, 1, 0)
            to_query = _dot(to_scores, known_key, 0, 0) + _cut(to_queries, row, block, head, size.query)
            return _paste(to_queries, to_query, row, block, head), to_key, to_value

        nothing = jnp.zeros(known_key.shape, jnp.float32)
        first = ranges.first_query[row, place]
        last = first + ranges.queries[row, place]
        to_queries, to_keys, to_values = done
        to_queries, to_key, to_value = jax.lax.fori_loop(first, last, visit, (to_queries, nothing, nothing))
        to_keys = _paste(to_keys, to_key.astype(key.dtype), row, place, head)
        return to_queries, to_keys, _paste(to_values, to_value.astype(value.dtype), row, place, head)

    nothing = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(keys.shape, key.dtype), jnp.zeros(keys.shape, key.dtype)
    to_query, to_key, to_value = jax.lax.fori_loop(0, rows * heads * number, collect, nothing)
    return to_query[:, :slots].astype(query.dtype), to_key[:, : key.shape[1]], to_value[:, : key.shape[1]]


blockwise = with_gradient(_forward, _backward)


def _cut(tokens: Float[Array, "r s h d"], row: Array, block: Array, head: Array, size: int) -> Float[Array, "b d"]:
    """A block of one head."""
    width = tokens.shape[-1]
    return jax.lax.dynamic_slice(tokens, (row, block * size, head, 0), (1, size, 1, width)).reshape(size, width)


def _paste(
    tokens: Float[Array, "r s h d"], part: Float[Array, "b d"], row: Array, block: Array, head: Array
) -> Float[Array, "r s h d"]:
    """The tokens with a block of one head put in its place."""
    return jax.lax.dynamic_update_slice(tokens, part[None, :, None], (row, block * part.shape[0], head, 0))


def _cut_segments(segments: Int[Array, "r s"], row: Array, block: Array, size: int) -> Int[Array, " b"]:
    return jax.lax.dynamic_slice(segments, (row, block * size), (1, size))[0]


def _dot(left: Float[Array, "a b"], right: Float[Array, "c d"], along: int, across: int) -> Float[Array, "m n"]:
    """The product of two matrices over axis `along` of the one and `across` of the other, in float32."""
    axes = (((along,), (across,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
