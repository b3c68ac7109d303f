"""Choosing and listing without sorting, which a TPU's compiler takes seconds for, sort by sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

_LANES = 128


def order_keys(scores: Float[Array, " n"]) -> UInt32[Array, " n"]:
    """Non-negative float32 scores as integers of the same order, which are their bits."""
    return jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)


def lowest(keys: UInt32[Array, " n"], count: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """Exactly the `count` lowest keys, of equal ones the first: those of rank < count in a stable sort.

    The largest key that belongs to them is found bit by bit, by counting keys below.
    """

    def with_bit(place: Int[Array, ""], found: UInt32[Array, ""]) -> UInt32[Array, ""]:
        higher = found | (jnp.uint32(1) << (31 - place).astype(jnp.uint32))
        return jnp.where((keys < higher).sum() < count, higher, found)

    last = jax.lax.fori_loop(0, 32, with_bit, jnp.uint32(0))
    below, equal = keys < last, keys == last
    return below | (equal & (jnp.cumsum(equal) <= count - below.sum()))


def places_of(chosen: Bool[Array, " n"], capacity: int) -> Int[Array, " s"]:
    """The places of the first `capacity` chosen elements in order, n where there are no more.

    An element's slot is how many are chosen up to it; a slot looks first for its block of elements, then inside it.
    """
    total = chosen.shape[0]
    blocks = -(-total // _LANES)
    upto = jnp.cumsum(jnp.pad(chosen, (0, blocks * _LANES - total)), dtype=jnp.int32).reshape(blocks, _LANES)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    block = (upto[:, -1] <= slot[:, None]).sum(axis=1, dtype=jnp.int32)
    inside = (upto[jnp.minimum(block, blocks - 1)] <= slot[:, None]).sum(axis=1, dtype=jnp.int32)
    return jnp.minimum(block * _LANES + inside, total)
