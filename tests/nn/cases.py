"""Shared by the tests of attention: awkward rows and segments, and a way to run every implementation on a CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from lsm_jax.nn.attention import IMPLEMENTATIONS, attention, available_implementations, interpret_kernels
from lsm_jax.nn.attention.blocks import BlockSizes


class Case(NamedTuple):
    """Static shapes. Segments and values vary within a case, so that it is compiled once."""

    rows: int
    queries: int
    keys: int
    heads: int
    head_size: int
    dtype: str
    block_sizes: BlockSizes | None  # None: the implementation's own

    @property
    def is_self(self) -> bool:
        return self.queries == self.keys


CASES = (
    Case(2, 130, 130, 2, 24, "float32", None),
    Case(1, 192, 67, 2, 64, "bfloat16", BlockSizes(64, 32)),
    Case(3, 49, 49, 1, 16, "float32", BlockSizes(16, 16, 2)),
)


@contextlib.contextmanager
def anywhere(name: str) -> Iterator[None]:
    """Runs an implementation whose hardware is missing: Pallas kernels interpreted, cuDNN replaced by XLA."""
    if name in available_implementations():
        yield
        return
    cudnn = jax.nn.dot_product_attention

    def computed(*operands: jax.Array, implementation: str, **settings: object) -> jax.Array:
        assert implementation == "cudnn"
        return cudnn(*operands, implementation="xla", **settings)

    jax.nn.dot_product_attention = computed
    try:
        with interpret_kernels():
            yield
    finally:
        jax.nn.dot_product_attention = cudnn


@functools.cache
def compiled(name: str, case: Case) -> Callable[..., tuple[jax.Array, ...]]:
    """(query, key, value, do, query segments, key segments) -> output, dq, dk, dv."""

    has_own_sizes = case.block_sizes is not None and name in {"blockwise", "pallas_tpu", "pallas_gpu"}

    def run(query, key, value, do, query_segments, key_segments):
        segments = query_segments, key_segments
        block_mask = IMPLEMENTATIONS[name].block_mask(*segments, case.block_sizes) if has_own_sizes else None

        def attend(*heads):
            with anywhere(name):
                return attention(*heads, *segments, name, block_mask)

        out, vjp = jax.vjp(attend, query, key, value)
        with anywhere(name):
            return out, *vjp(do.astype(out.dtype))

    return jax.jit(run)


def row(lengths: list[int], slots: int) -> np.ndarray:
    """Segments 1, 2, ... of these lengths, as far as there are slots, then padding."""
    ids = np.concatenate([np.full(length, index + 1) for index, length in enumerate(lengths)] + [np.zeros(slots)])
    return ids[:slots].astype(np.int32)


@st.composite
def segments(draw: st.DrawFn, rows: int, slots: int) -> np.ndarray:
    """int32[rows, slots]. Lengths: none, one token, 64 mod 128, full and anything between; sometimes with holes."""
    length = st.sampled_from([0, 1, 64, slots // 2, slots]) | st.integers(0, slots)
    ids = np.stack([row(draw(st.lists(length, min_size=1, max_size=4)), slots) for _ in range(rows)])
    if draw(st.booleans()):
        ids[np.random.default_rng(draw(st.integers(0, 99))).random(ids.shape) < 0.3] = 0
    return ids


def heads(case: Case, seed: int) -> list[np.ndarray]:
    """Query, key, value and the gradient of the output, in float32."""
    random = np.random.default_rng(seed)
    slots = case.queries, case.keys, case.keys, case.queries
    return [random.normal(size=(case.rows, each, case.heads, case.head_size)).astype(np.float32) for each in slots]


def fill_padding(
    parts: list[np.ndarray], query_segments: np.ndarray, key_segments: np.ndarray, filler: float
) -> list[jax.Array]:
    """Query, key and value with `filler` in all padding."""
    return [
        jnp.asarray(np.where((segments == 0)[:, :, None, None], np.float32(filler), part))
        for part, segments in zip(parts, (query_segments, key_segments, key_segments), strict=True)
    ]
