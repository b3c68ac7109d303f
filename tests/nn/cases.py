"""What the tests of attention share: rows and segments of awkward lengths, every implementation made to run here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from lsm_jax.nn.attention import IMPLEMENTATIONS, attention, available, interpreted
from lsm_jax.nn.attention.ranges import Blocks


class Case(NamedTuple):
    """Static shapes: segments, values and garbage vary within one, so that it is compiled once."""

    rows: int
    queries: int
    keys: int
    heads: int
    head_size: int
    dtype: str
    blocks: Blocks | None  # None: the implementation's own

    @property
    def is_self(self) -> bool:
        return self.queries == self.keys


CASES = (
    Case(2, 130, 130, 2, 24, "float32", None),
    Case(1, 192, 67, 2, 64, "bfloat16", Blocks(64, 32)),
    Case(3, 49, 49, 1, 16, "float32", Blocks(16, 16, 2)),
)


@contextlib.contextmanager
def anywhere(name: str) -> Iterator[None]:
    """What does not run here is made to: kernels are interpreted, and what is asked of cuDNN is computed by XLA."""
    if name in available():
        yield
        return
    cudnn = jax.nn.dot_product_attention

    def computed(*operands: jax.Array, implementation: str, **settings: object) -> jax.Array:
        assert implementation == "cudnn"
        return cudnn(*operands, implementation="xla", **settings)

    jax.nn.dot_product_attention = computed
    try:
        with interpreted():
            yield
    finally:
        jax.nn.dot_product_attention = cudnn


@functools.cache
def compiled(name: str, case: Case) -> Callable[..., tuple[jax.Array, ...]]:
    """(query, key, value, weight, query segments, key segments) -> output, gradients of query, key and value."""

    given = case.blocks is not None and name in {"blockwise", "pallas_tpu", "pallas_gpu"}

    def run(query, key, value, weight, asking, known):
        ranges = IMPLEMENTATIONS[name].ranges(asking, known, case.blocks) if given else None

        def attend(*heads):
            with anywhere(name):
                return attention(*heads, asking, known, name, ranges)

        out, pull = jax.vjp(attend, query, key, value)
        with anywhere(name):
            return out, *pull(weight.astype(out.dtype))

    return jax.jit(run)


def row(lengths: list[int], slots: int) -> np.ndarray:
    """Segments 1, 2, ... of these lengths, as far as there are slots, then padding."""
    whole = np.concatenate([np.full(length, place + 1) for place, length in enumerate(lengths)] + [np.zeros(slots)])
    return whole[:slots].astype(np.int32)


@st.composite
def segments(draw: st.DrawFn, rows: int, slots: int) -> np.ndarray:
    """int32[rows, slots]: none, one token, 64 mod 128, full and anything between; sometimes with holes."""
    length = st.sampled_from([0, 1, 64, slots // 2, slots]) | st.integers(0, slots)
    made = np.stack([row(draw(st.lists(length, min_size=1, max_size=4)), slots) for _ in range(rows)])
    if draw(st.booleans()):
        made[np.random.default_rng(draw(st.integers(0, 99))).random(made.shape) < 0.3] = 0
    return made


def heads(case: Case, seed: int) -> list[np.ndarray]:
    """Query, key, value and the weight of the output, in float32."""
    random = np.random.default_rng(seed)
    slots = case.queries, case.keys, case.keys, case.queries
    return [random.normal(size=(case.rows, each, case.heads, case.head_size)).astype(np.float32) for each in slots]


def in_padding(parts: list[np.ndarray], asking: np.ndarray, known: np.ndarray, what: float) -> list[jax.Array]:
    """Query, key and value with `what` in all padding."""
    return [
        jnp.asarray(np.where((where == 0)[:, :, None, None], np.float32(what), part))
        for part, where in zip(parts, (asking, known, known), strict=True)
    ]
