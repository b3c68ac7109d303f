"""Choosing and listing without sorting, which a TPU's compiler takes seconds for, sort by sort."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

_LANES = 128


def order_keys(scores: Float[Array, " n"]) -> UInt32[Array, " n"]:
    """Non-negative float32 scores as integers of the same order, which are their bits."""
    return jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)


def lowest(keys: UInt32[Array, " n"], count: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """Exactly the `count` lowest keys, of equal ones the first: those of rank < count in a stable sort."""
    last = _largest(32, lambda key: (keys < key).sum() < count)
    below, equal = keys < last, keys == last
    place, wanted = jnp.arange(len(keys), dtype=jnp.uint32), count - below.sum()
    end = _largest(len(keys).bit_length(), lambda end: (equal & (place < end)).sum() <= wanted)
    return below | (equal & (place < end))


def _largest(bits: int, holds: Callable[[UInt32[Array, ""]], Bool[Array, ""]]) -> UInt32[Array, ""]:
    """The largest number of so many bits for which something holds that holds for all smaller ones; bit by bit."""

    def with_bit(place: Int[Array, ""], found: UInt32[Array, ""]) -> UInt32[Array, ""]:
        higher = found | (jnp.uint32(1) << (bits - 1 - place).astype(jnp.uint32))
        return jnp.where(holds(higher), higher, found)

    return jax.lax.fori_loop(0, bits, with_bit, jnp.uint32(0))


def places_of(chosen: Bool[Array, " n"], capacity: int) -> Int[Array, " s"]:
    """The places of the first `capacity` chosen elements in order, n where there are no more.

    An element's slot is how many are chosen before it; a slot looks first for its block of elements, then inside it.
    """
    total = chosen.shape[0]
    blocks = jnp.pad(chosen, (0, -total % _LANES)).reshape(-1, _LANES)
    after = _upto(blocks.sum(axis=1))
    upto = _upto(blocks) + (after - blocks.sum(axis=1))[:, None]
    slot = jnp.arange(capacity, dtype=jnp.int32)[:, None]
    block = (after <= slot).sum(axis=1, dtype=jnp.int32)
    inside = (upto[jnp.minimum(block, len(blocks) - 1)] <= slot).sum(axis=1, dtype=jnp.int32)
    return jnp.minimum(block * _LANES + inside, total)


def _upto(counts: Int[Array, "*b n"] | Bool[Array, "*b n"]) -> Int[Array, "*b n"]:
    """Sums of counts of at most 128 up to each place: a product with a triangle of ones.

    Exact, as bfloat16 holds such counts; a TPU's compiler writes a window of many steps for a running sum.
    """
    places = jnp.arange(counts.shape[-1])
    triangle = (places[:, None] <= places).astype(jnp.bfloat16)
    return jnp.matmul(counts.astype(jnp.bfloat16), triangle, preferred_element_type=jnp.float32).astype(jnp.int32)
