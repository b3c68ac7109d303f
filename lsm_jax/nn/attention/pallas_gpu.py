"""Segment attention on NVIDIA GPUs: Pallas kernels for Triton that loop over the blocks in range.

A program holds a block of queries (or of keys) and walks over the blocks of the other side that its range names.
Heads stay where the projections put them, [R, S, H, D]. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from lsm_jax.nn.attention.blocked import Operands, with_gradient
from lsm_jax.nn.attention.platforms import interpretation
from lsm_jax.nn.attention.ranges import Blocks, Ranges, pad_slots
from lsm_jax.nn.attention.reference import NEVER

try:  # JAX 0.11 announces that it will go; everything else must work without it
    from jax.experimental.pallas import triton as plgpu
except ImportError:
    plgpu = None  # type: ignore[assignment]

PLATFORMS = frozenset({"gpu"} if plgpu else ())


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Powers of two, which Triton wants, such that what a program holds fits its registers.

    As measured on an H100; larger ones reach further over the ends of segments, and are no faster (docs/attention.md).
    """
    return Blocks(64, 64) if head_size <= 128 else Blocks(32, 32)


def _stages(head_size: int) -> tuple[int, int, int]:
    """Blocks of the other side that are underway from memory: forward, to queries, to keys; as measured on an H100."""
    return (2, 2, 3) if head_size <= 64 else (3, 2, 2)


def _forward(operands: Operands[Ranges]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h s"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size = ranges.blocks
    queries = pad_slots(query, size.query)
    keys, values = pad_slots(key, size.key), pad_slots(value, size.key)
    layout = _Layout(queries.shape, keys.shape[1], size)
    by_block, whole = layout.held_queries, layout.all_keys
    out, log_total = layout.call(
        functools.partial(_forward_kernel, size=size, width=query.shape[-1]),
        queries.shape[1] // size.query,
        [
            (queries, by_block.heads),
            (keys, whole.heads),
            (values, whole.heads),
            (pad_slots(query_segments, size.query, -1), by_block.slots),
            (pad_slots(key_segments, size.key), whole.slots),
            (ranges.first_key, layout.range),
            (ranges.keys, layout.range),
        ],
        [
            (jax.ShapeDtypeStruct(queries.shape, query.dtype), by_block.heads),
            (layout.totals, by_block.totals),
        ],
        products=2,
        stages=_stages(query.shape[-1])[0],
    )
    return out[:, : query.shape[1]], log_total


def _backward(
    operands: Operands[Ranges],
    log_total: Float[Array, "r h s"],
    gradient: Float[Array, "r s h d"],
    given: Float[Array, "r h s"],
) -> tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size = ranges.blocks
    queries, gradients = pad_slots(query, size.query), pad_slots(gradient, size.query)
    given = jnp.pad(given, ((0, 0), (0, 0), (0, queries.shape[1] - given.shape[2])))
    keys, values = pad_slots(key, size.key), pad_slots(value, size.key)
    asking, known = pad_slots(query_segments, size.query, -1), pad_slots(key_segments, size.key)
    layout = _Layout(queries.shape, keys.shape[1], size)

    def call(
        kernel: Callable[..., None], held: int, sides: tuple[_Side, _Side], visits: tuple[Array, Array],
        results: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]], products: int, stages: int,
    ) -> list[Array]:  # fmt: skip
        of_query, of_key = sides
        operands = [
            (queries, of_query.heads),
            (keys, of_key.heads),
            (values, of_key.heads),
            (asking, of_query.slots),
            (known, of_key.slots),
            (gradients, of_query.heads),
            (log_total, of_query.totals),
            (given, of_query.totals),
            *((part, layout.range) for part in visits),
        ]
        kernel = functools.partial(kernel, size=size, width=query.shape[-1])
        return layout.call(kernel, held, operands, results, products, stages)

    _, of_queries, of_keys = _stages(query.shape[-1])
    like_query, like_key = (jax.ShapeDtypeStruct(part.shape, query.dtype) for part in (queries, keys))
    (to_query,) = call(
        _query_gradient_kernel, queries.shape[1] // size.query, (layout.held_queries, layout.all_keys),
        (ranges.first_key, ranges.keys), [(like_query, layout.held_queries.heads)], 3, of_queries,
    )  # fmt: skip
    to_key, to_value = call(
        _key_gradient_kernel, keys.shape[1] // size.key, (layout.all_queries, layout.held_keys),
        (ranges.first_query, ranges.queries), [(like_key, layout.held_keys.heads)] * 2, 4, of_keys,
    )  # fmt: skip
    return to_query[:, : query.shape[1]], to_key[:, : key.shape[1]], to_value[:, : key.shape[1]]


pallas_gpu = with_gradient(_forward, _backward)


def _forward_kernel(
    query: Any, key: Any, value: Any, asking: Any, known: Any, first: Any, count: Any, out: Any, log_total: Any, *,
    size: Blocks, width: int,
) -> None:  # fmt: skip
    load, store = _access(query, width)
    asked, segments = load(query), asking[...]

    def visit(place: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, attended = carry
        at = pl.ds(place * size.key, size.key)
        scores = jnp.where(segments[:, None] == known[at][None], _dot(asked, load(key.at[at]).T), NEVER)
        # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
        higher = jnp.maximum(highest, scores.max(axis=1))
        weights = jnp.exp(scores - higher[:, None])
        shrunk = jnp.exp(highest - higher)
        gained = _dot(weights.astype(value.dtype), load(value.at[at]))
        return higher, total * shrunk + weights.sum(axis=1), attended * shrunk[:, None] + gained

    start = (
        jnp.full(size.query, 0.5 * NEVER, jnp.float32),
        jnp.zeros(size.query, jnp.float32),
        jnp.zeros(asked.shape, jnp.float32),
    )
    highest, total, attended = _walk(first, count, visit, start)
    total = jnp.where(total > 0, total, 1.0)
    store(out, attended / total[:, None])
    log_total[...] = highest + jnp.log(total)


def _query_gradient_kernel(
    query: Any, key: Any, value: Any, asking: Any, known: Any, gradient: Any, log_total: Any, given: Any, first: Any,
    count: Any, to_query: Any, *, size: Blocks, width: int,
) -> None:  # fmt: skip
    load, store = _access(query, width)
    asked, wanted, segments, less, give = load(query), load(gradient), asking[...], log_total[...], given[...]

    def visit(place: Array, collected: Array) -> Array:
        at = pl.ds(place * size.key, size.key)
        told = load(key.at[at])
        seen = segments[:, None] == known[at][None]
        weights = jnp.exp(jnp.where(seen, _dot(asked, told.T) - less[:, None], NEVER))
        to_scores = weights * (_dot(wanted, load(value.at[at]).T) - give[:, None])
        return collected + _dot(to_scores.astype(told.dtype), told)

    store(to_query, _walk(first, count, visit, jnp.zeros(asked.shape, jnp.float32)))


def _key_gradient_kernel(
    query: Any, key: Any, value: Any, asking: Any, known: Any, gradient: Any, log_total: Any, given: Any, first: Any,
    count: Any, to_key: Any, to_value: Any, *, size: Blocks, width: int,
) -> None:  # fmt: skip
    load, store = _access(key, width)
    known_key, told, segments = load(key), load(value), known[...]

    def visit(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to_key, to_value = carry
        at = pl.ds(block * size.query, size.query)
        asked, wanted = load(query.at[at]), load(gradient.at[at])
        seen = segments[:, None] == asking[at][None]
        weights = jnp.exp(jnp.where(seen, _dot(known_key, asked.T) - log_total[at][None], NEVER))
        to_value += _dot(weights.astype(wanted.dtype), wanted)
        to_scores = weights * (_dot(told, wanted.T) - given[at][None])
        return to_key + _dot(to_scores.astype(asked.dtype), asked), to_value

    nothing = jnp.zeros(known_key.shape, jnp.float32)
    collected_key, collected_value = _walk(first, count, visit, (nothing, nothing))
    store(to_key, collected_key)
    store(to_value, collected_value)


def _walk(first: Any, count: Any, visit: Callable[[Array, Any], Any], start: Any) -> Any:
    return jax.lax.fori_loop(first[()], first[()] + count[()], visit, start)


def _access(heads: Any, width: int) -> tuple[Callable[[Any], Array], Callable[[Any, Array], None]]:
    """Loading and storing of blocks that are wider than a head, which is no power of two."""
    mask = (jnp.arange(heads.shape[-1]) < width)[None]

    def load(part: Any) -> Array:
        return plgpu.load(part, mask=mask, other=0.0)

    def store(part: Any, what: Array) -> None:
        plgpu.store(part, what.astype(part.dtype), mask=mask)

    return load, store


def _dot(left: Float[Array, "m k"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


class _Side:
    """Block specifications of [R, S, H, D] (heads), [R, S] (slots) and [R, H, S] (totals), a block each or the row."""

    def __init__(self, block: int, width: int, *, held: bool) -> None:
        def at(place: Array) -> Array | int:
            return place if held else 0

        self.heads = pl.BlockSpec((None, block, None, width), lambda i, row, head: (row, at(i), head, 0))
        self.slots = pl.BlockSpec((None, block), lambda i, row, head: (row, at(i)))  # noqa: ARG005
        self.totals = pl.BlockSpec((None, None, block), lambda i, row, head: (row, head, at(i)))


class _Layout:
    """Where operands lie for programs that hold a block of one side each and see the whole row of the other."""

    def __init__(self, shape: tuple[int, ...], key_slots: int, size: Blocks) -> None:
        self._shape, self._key_slots = shape, key_slots
        width = max(pl.next_power_of_2(shape[3]), 16)  # the least a matrix unit takes
        self.held_queries, self.held_keys = _Side(size.query, width, held=True), _Side(size.key, width, held=True)
        self.all_queries, self.all_keys = _Side(shape[1], width, held=False), _Side(key_slots, width, held=False)
        self.range = pl.BlockSpec((None, None), lambda i, row, head: (row, i))  # noqa: ARG005
        self.totals = jax.ShapeDtypeStruct((shape[0], shape[2], shape[1]), jnp.float32)

    def call(
        self,
        kernel: Callable[..., None],
        held: int,
        operands: Sequence[tuple[Array, pl.BlockSpec]],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        products: int,
        stages: int,
    ) -> list[Array]:
        """Runs a kernel of so many products per pair of blocks; its cost is stated as if every pair were visited."""
        rows, slots, heads, width = self._shape
        scores = rows * heads * slots * self._key_slots
        name = getattr(kernel, "func", kernel).__name__
        compute = pl.pallas_call(
            kernel,
            out_shape=[shape for shape, _ in results],
            grid=(held, rows, heads),
            in_specs=[spec for _, spec in operands],
            out_specs=[spec for _, spec in results],
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=stages),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * width,
                transcendentals=scores,
                bytes_accessed=sum(_bytes(array) for array, _ in operands) + sum(_bytes(shape) for shape, _ in results),
            ),
            interpret=interpretation(),
            name=f"segment_attention{name.removesuffix('_kernel')}",
        )
        return compute(*(array for array, _ in operands))


def _bytes(array: Array | jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
