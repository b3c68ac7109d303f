"""What an implementation executes, which XLA's own count of a program with kernels does not know."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from lsm_jax.attention.ranges import Blocks, block_ranges
from lsm_jax.attention.registry import IMPLEMENTATIONS, blocks_of, resolved


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of matrix products, two per multiply-add."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def flops(
    implementation: str, query_segments: np.ndarray, key_segments: np.ndarray, heads: int, head_size: int
) -> Flops:
    """Executed FLOPs for given segments int32[R, S] and int32[R, T], padding within visited blocks included."""
    shape = query_segments.shape[1], key_segments.shape[1]
    name = resolved(implementation, *shape)
    if not IMPLEMENTATIONS[name].skips:
        return worst_case_flops(name, query_segments.shape[0], *shape, heads, head_size)
    blocks = blocks_of(name, *shape, head_size)
    assert blocks is not None  # what skips has blocks to skip
    ranges = block_ranges(jnp.asarray(query_segments), jnp.asarray(key_segments), blocks)
    return _count(name, blocks, int(ranges.keys.sum()), int(ranges.queries.sum()), heads, head_size)


def worst_case_flops(
    implementation: str, rows: int, query_slots: int, key_slots: int, heads: int, head_size: int
) -> Flops:
    """Executed FLOPs where every query sees every key: the most that rows of these lengths can cost."""
    name = resolved(implementation, query_slots, key_slots)
    blocks = blocks_of(name, query_slots, key_slots, head_size) or Blocks(query_slots, key_slots)
    pairs = rows * -(-query_slots // blocks.query) * -(-key_slots // blocks.key)
    return _count(name, blocks, pairs, pairs, heads, head_size)


def _count(name: str, blocks: Blocks, by_query: int, by_key: int, heads: int, head_size: int) -> Flops:
    """FLOPs of so many visits to pairs of blocks, of kernels by query and of kernels by key."""
    how, product = IMPLEMENTATIONS[name], 2.0 * blocks.query * blocks.key * heads * head_size
    backward = how.backward_by_query * by_query + how.backward_by_key * by_key
    return Flops(2 * product * by_query, product * backward)
