"""Segment attention on TPUs: Mosaic kernels that fetch and compute only blocks in range.

A kernel's grid is rows x heads x blocks x the most visits a block needs, known when the step runs. Where visits start
and how many there are is prefetched to scalar memory, so that the pipeline knows what to fetch next; beyond a block's
last visit the index map stays where it is, which fetches nothing, and nothing is computed. Scores stand transposed,
keys down and queries across, so that what belongs to a query (maximum, total, segment) is a row of lanes and reductions
run over sublanes. Queries are therefore given as [R, H, D, S], keys and values as [R, H, T, D]. After FlashAttention-2
(Dao, 2023, arXiv:2307.08691).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from lsm_jax.attention.platforms import interpretation
from lsm_jax.attention.ranges import Blocks, Ranges, even_block, pad_slots
from lsm_jax.attention.reference import NEVER

_LANES = 128
_Residuals = tuple[Array, Array, Array, Array, Array, Ranges, Array, Array]


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:
    """Blocks of whole lanes, such that scores, heads and their copies in flight fit the smallest VMEM in use."""
    limit = 512 if head_size <= _LANES else 256
    return Blocks(even_block(query_slots, _LANES, limit), even_block(key_slots, _LANES, limit))


@jax.custom_vjp
def pallas_tpu(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    ranges: Ranges,
) -> Float[Array, "r s h d"]:
    """As `reference`, of cleaned heads: zeros stand in padding, which is segment -1 of queries and 0 of keys."""
    return _forward(query, key, value, query_segments, key_segments, ranges)[0]


def _forward(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    ranges: Ranges,
) -> tuple[Float[Array, "r s h d"], _Residuals]:
    width, blocks_ = query.shape[-1], ranges.blocks
    across = _across(query * width**-0.5, blocks_.query)
    grid = _Grid(across.shape, _down_shape(key, blocks_.key), blocks_, by_query=True)
    asking, known = _segments(query_segments, blocks_.query, -1), _segments(key_segments, blocks_.key, 0)
    out, log_total = grid.call(
        _forward_kernel,
        (ranges.first_key, ranges.keys),
        [
            (across, grid.queries),
            (_down(key, blocks_.key), grid.keys),
            (_down(value, blocks_.key), grid.keys),
            (asking, grid.query_segments),
            (known, grid.key_segments),
        ],
        [
            (jax.ShapeDtypeStruct(across.shape, query.dtype), grid.queries),
            (jax.ShapeDtypeStruct((*across.shape[:2], 1, across.shape[3]), jnp.float32), grid.totals),
        ],
        [(1, blocks_.query), (1, blocks_.query), (width, blocks_.query)],
        products=2,
    )
    out = _back(out.swapaxes(2, 3), query)
    return out, (query, key, value, query_segments, key_segments, ranges, out, log_total)


def _backward(residuals: _Residuals, gradient: Float[Array, "r s h d"]) -> tuple[Array | None, ...]:
    query, key, value, query_segments, key_segments, ranges, out, log_total = residuals
    width, blocks_ = query.shape[-1], ranges.blocks
    # How much a query's weights must give way: the sum over its keys of weight x gradient of weight.
    given = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    given = pad_slots(given, blocks_.query).swapaxes(1, 2)[:, :, None]
    across, down = _across(query * width**-0.5, blocks_.query), _down(key, blocks_.key)
    shapes = across.shape, down.shape, blocks_

    def call(by_query: bool, kernel: Callable[..., None], visits: tuple[Array, Array], products: int) -> Any:
        grid = _Grid(*shapes, by_query=by_query)
        operands = [
            (across, grid.queries),
            (down, grid.keys),
            (_down(value, blocks_.key), grid.keys),
            (_segments(query_segments, blocks_.query, -1), grid.query_segments),
            (_segments(key_segments, blocks_.key, 0), grid.key_segments),
            (_across(gradient, blocks_.query), grid.queries),
            (log_total, grid.totals),
            (given, grid.totals),
        ]
        like_query, like_key = (jax.ShapeDtypeStruct(part.shape, query.dtype) for part in (across, down))
        results = [(like_query, grid.queries)] if by_query else [(like_key, grid.keys)] * 2
        scratch = [(width, blocks_.query)] if by_query else [(blocks_.key, width)] * 2
        return grid.call(kernel, visits, operands, results, scratch, products)

    (to_query,) = call(True, _query_gradient_kernel, (ranges.first_key, ranges.keys), 3)
    to_key, to_value = call(False, _key_gradient_kernel, (ranges.first_query, ranges.queries), 4)
    to_query = (_back(to_query.swapaxes(2, 3), query) * width**-0.5).astype(query.dtype)
    return to_query, _back(to_key, key), _back(to_value, value), None, None, None


pallas_tpu.defvjp(_forward, _backward)


def _forward_kernel(
    first: Any, count: Any, query: Any, key: Any, value: Any, asking: Any, known: Any, out: Any, log_total: Any,
    highest: Any, total: Any, attended: Any,
) -> None:  # fmt: skip
    visit, visits = _visit(first, count)

    @pl.when(visit == 0)
    def _() -> None:
        highest[...] = jnp.full_like(highest, 0.5 * NEVER)
        total[...] = jnp.zeros_like(total)
        attended[...] = jnp.zeros_like(attended)

    @pl.when(visit < visits)
    def _() -> None:
        scores = _scores(query, key, asking, known, 0.0)
        # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
        higher = jnp.maximum(highest[...], scores.max(axis=0, keepdims=True))
        weights = jnp.exp(scores - higher)
        shrunk = jnp.exp(highest[...] - higher)
        highest[...] = higher
        total[...] = total[...] * shrunk + weights.sum(axis=0, keepdims=True)
        attended[...] = attended[...] * shrunk + _dot(value[...], weights.astype(value.dtype), 0, 0)

    @pl.when(visit == pl.num_programs(3) - 1)
    def _() -> None:
        kept = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (attended[...] / kept).astype(out.dtype)
        log_total[...] = highest[...] + jnp.log(kept)


def _query_gradient_kernel(
    first: Any, count: Any, query: Any, key: Any, value: Any, asking: Any, known: Any, gradient: Any, log_total: Any,
    given: Any, to_query: Any, collected: Any,
) -> None:  # fmt: skip
    visit, visits = _visit(first, count)

    @pl.when(visit == 0)
    def _() -> None:
        collected[...] = jnp.zeros_like(collected)

    @pl.when(visit < visits)
    def _() -> None:
        weights = jnp.exp(_scores(query, key, asking, known, log_total[...]))
        to_scores = weights * (_dot(value[...], gradient[...], 1, 0) - given[...])
        collected[...] += _dot(key[...], to_scores.astype(key.dtype), 0, 0)

    @pl.when(visit == pl.num_programs(3) - 1)
    def _() -> None:
        to_query[...] = collected[...].astype(to_query.dtype)


def _key_gradient_kernel(
    first: Any, count: Any, query: Any, key: Any, value: Any, asking: Any, known: Any, gradient: Any, log_total: Any,
    given: Any, to_key: Any, to_value: Any, collected_key: Any, collected_value: Any,
) -> None:  # fmt: skip
    visit, visits = _visit(first, count)

    @pl.when(visit == 0)
    def _() -> None:
        collected_key[...] = jnp.zeros_like(collected_key)
        collected_value[...] = jnp.zeros_like(collected_value)

    @pl.when(visit < visits)
    def _() -> None:
        weights = jnp.exp(_scores(query, key, asking, known, log_total[...]))
        collected_value[...] += _dot(weights.astype(gradient.dtype), gradient[...], 1, 1)
        to_scores = weights * (_dot(value[...], gradient[...], 1, 0) - given[...])
        collected_key[...] += _dot(to_scores.astype(query.dtype), query[...], 1, 1)

    @pl.when(visit == pl.num_programs(3) - 1)
    def _() -> None:
        to_key[...] = collected_key[...].astype(to_key.dtype)
        to_value[...] = collected_value[...].astype(to_value.dtype)


def _visit(first: Any, count: Any) -> tuple[Array, Array]:
    """The number of this visit and how many there are for the block."""
    del first  # used by the index maps
    return pl.program_id(3), count[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)]


def _scores(query: Any, key: Any, asking: Any, known: Any, less: Any) -> Float[Array, "k q"]:
    """Scores `less` something per query, `NEVER` where the query does not see the key."""
    scores = _dot(key[...], query[...], 1, 0) - less
    column = jnp.broadcast_to(known[...], (_LANES, known.shape[1])).T[:, :1]
    return jnp.where(column == asking[...], scores, NEVER)


def _dot(left: Float[Array, "a b"], right: Float[Array, "c d"], along: int, across: int) -> Float[Array, "m n"]:
    """The product of two matrices over axis `along` of the one and `across` of the other, in float32."""
    axes = (((along,), (across,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


class _Grid:
    """The grid of a kernel over blocks of queries (or of keys), and where each kind of operand lies on it.

    Attributes:
      queries, keys, query_segments, key_segments, totals: block specifications of operands by their shapes:
        [R, H, D, S], [R, H, T, D], [R, 1, S], [R, 1, T] and [R, H, 1, S].
    """

    def __init__(
        self, query_shape: tuple[int, ...], key_shape: tuple[int, ...], size: Blocks, *, by_query: bool
    ) -> None:
        rows, heads, width, query_slots = query_shape
        number, places = query_slots // size.query, key_shape[2] // size.key
        held = number if by_query else places
        self._grid = (rows, heads, held)
        self._scores = rows * heads * number * places * size.query * size.key
        self._width = width

        def staying(row: Array, held_block: Array, visit: Array, first: Any, count: Any) -> Array:  # noqa: ARG001
            return held_block

        def moving(row: Array, held_block: Array, visit: Array, first: Any, count: Any) -> Array:
            at = row * held + held_block
            return first[at] + jnp.clip(visit, 0, jnp.maximum(count[at] - 1, 0))

        query_block, key_block = (staying, moving) if by_query else (moving, staying)

        def spec(shape: tuple[int | None, ...], place: Callable[..., tuple[Any, ...]], block: Any) -> pl.BlockSpec:
            return pl.BlockSpec(shape, lambda row, head, *at: place(row, head, block(row, *at)))

        self.queries = spec((None, None, width, size.query), lambda r, h, b: (r, h, 0, b), query_block)
        self.totals = spec((None, None, 1, size.query), lambda r, h, b: (r, h, 0, b), query_block)
        self.keys = spec((None, None, size.key, width), lambda r, h, b: (r, h, b, 0), key_block)
        self.query_segments = spec((None, 1, size.query), lambda r, _, b: (r, 0, b), query_block)
        self.key_segments = spec((None, 1, size.key), lambda r, _, b: (r, 0, b), key_block)

    def call(
        self,
        kernel: Callable[..., None],
        visits: tuple[Int[Array, "r b"], Int[Array, "r b"]],
        operands: Sequence[tuple[Array, pl.BlockSpec]],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[tuple[int, ...]],
        products: int,
    ) -> list[Array]:
        """Runs a kernel of so many products per pair of blocks; its cost is stated as if every pair were visited."""
        cost = pl.CostEstimate(
            flops=2 * products * self._scores * self._width,
            transcendentals=self._scores,
            bytes_accessed=sum(_bytes(array) for array, _ in operands) + sum(_bytes(shape) for shape, _ in results),
        )
        compute = pl.pallas_call(
            kernel,
            out_shape=[shape for shape, _ in results],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                # A step of the grid costs something even where there is nothing to visit, and few blocks see many.
                grid=(*self._grid, jnp.maximum(visits[1].max(), 1)),
                in_specs=[spec for _, spec in operands],
                out_specs=[spec for _, spec in results],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
            cost_estimate=cost,
            interpret=interpretation(),
            name=f"segment_attention{kernel.__name__.removesuffix('_kernel')}",
        )
        return compute(*(part.reshape(-1) for part in visits), *(array for array, _ in operands))


def _segments(segments: Int[Array, "r s"], block: int, fill: int) -> Int[Array, "r 1 s"]:
    return pad_slots(segments, block, fill)[:, None]


def _down(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h s d"]:
    return pad_slots(tokens, block).transpose(0, 2, 1, 3)


def _down_shape(tokens: Float[Array, "r s h d"], block: int) -> tuple[int, ...]:
    return jax.eval_shape(functools.partial(_down, block=block), tokens).shape


def _across(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h d s"]:
    return pad_slots(tokens, block).transpose(0, 2, 3, 1)


def _back(heads: Float[Array, "r h s d"], like: Float[Array, "r t h d"]) -> Float[Array, "r t h d"]:
    return heads.swapaxes(1, 2)[:, : like.shape[1]]


def _bytes(array: Array | jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
