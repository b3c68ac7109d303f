"""Selection of k elements and of indices without sorting, because XLA compiles sorts slowly for TPUs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

_LANES = 128


def order_keys(scores: Float[Array, " n"]) -> UInt32[Array, " n"]:
    """The bits of non-negative float32 scores, which are integers of the same order."""
    return jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)


def smallest_k_mask(keys: UInt32[Array, " n"], k: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """True at the `k` smallest keys. Of equal keys the first are taken, as in a stable sort."""
    threshold = _largest(32, lambda key: (keys < key).sum() < k)
    below, equal = keys < threshold, keys == threshold
    index, ties = jnp.arange(len(keys), dtype=jnp.uint32), k - below.sum()
    end = _largest(len(keys).bit_length(), lambda end: (equal & (index < end)).sum() <= ties)
    return below | (equal & (index < end))


def _largest(bits: int, satisfies: Callable[[UInt32[Array, ""]], Bool[Array, ""]]) -> UInt32[Array, ""]:
    """The largest integer of `bits` bits that satisfies a monotone condition, found bit by bit (0 always does)."""

    def with_bit(step: Int[Array, ""], found: UInt32[Array, ""]) -> UInt32[Array, ""]:
        candidate = found | (jnp.uint32(1) << (bits - 1 - step).astype(jnp.uint32))
        return jnp.where(satisfies(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, with_bit, jnp.uint32(0))


def indices_where(mask: Bool[Array, " n"], length: int) -> Int[Array, " s"]:
    """Indices of the first `length` True elements in order, filled up with n.

    The mask is cut into blocks of 128. Each output first finds the block that holds its element, then the element.
    """
    total = mask.shape[0]
    blocks = jnp.pad(mask, (0, -total % _LANES)).reshape(-1, _LANES)
    block_ends = _cumsum(blocks.sum(axis=1))
    counts = _cumsum(blocks) + (block_ends - blocks.sum(axis=1))[:, None]
    output = jnp.arange(length, dtype=jnp.int32)[:, None]
    block = (block_ends <= output).sum(axis=1, dtype=jnp.int32)
    inside = (counts[jnp.minimum(block, len(blocks) - 1)] <= output).sum(axis=1, dtype=jnp.int32)
    return jnp.minimum(block * _LANES + inside, total)


def _cumsum(counts: Int[Array, "*b n"] | Bool[Array, "*b n"]) -> Int[Array, "*b n"]:
    """Cumulative sum of counts of at most 128, as a product with a triangle of ones.

    It is exact because bfloat16 represents such counts exactly. For `jnp.cumsum`, a TPU's compiler emits a slow loop.
    """
    index = jnp.arange(counts.shape[-1])
    triangle = (index[:, None] <= index).astype(jnp.bfloat16)
    return jnp.matmul(counts.astype(jnp.bfloat16), triangle, preferred_element_type=jnp.float32).astype(jnp.int32)
