"""Segment attention on TPUs: two Mosaic kernels, which fetch many blocks at a time and compute those in range.

A step of the grid costs a third of a microsecond, what 256 x 256 scores take, and blocks as large as that reach over
the ends of windows. So a step is brought `Blocks.fetched` small blocks of either side, and loops over the pairs among
them that their ranges allow; over two heads at a time, so that one computes while the other waits for its products.
The grid is rows x heads x what is held x the most visits that any of it needs, known when the step runs. Ranges are
prefetched to scalar memory, so that the pipeline knows what to fetch next; beyond the last visit the index map stays
where it is, which fetches nothing.

Heads are given as [R, H, D, S]: slots along lanes, which a head of 64 would half fill. Scores stand transposed, keys
down and queries across, so that what belongs to a query (maximum, total, segment) is a row of lanes and reductions run
over sublanes.
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

from lsm_jax.nn.attention.blocked import Operands, with_gradient
from lsm_jax.nn.attention.platforms import interpretation
from lsm_jax.nn.attention.ranges import Blocks, Ranges, pad_slots
from lsm_jax.nn.attention.reference import NEVER

_LANES = 128
_FETCHED = 1024  # slots of either side a step of the grid has at hand
_MIB = 2**20
_BESIDE = 4 * _MIB  # of a step: what is in flight of fetched blocks, and scores


def blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Blocks of one vector of lanes: smaller ones fill no product, larger ones reach over the ends of windows."""
    return Blocks(_LANES, _LANES, _FETCHED // _LANES // (1 if head_size <= _LANES else 2))


def _forward(operands: Operands[Ranges]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h 1 s"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size = ranges.blocks
    across = _across(query, size.query)
    grid = _Grid(across, _across(key, size.key), ranges, by_query=True)
    out, log_total = grid.call(
        _forward_kernel,
        [
            (across, grid.queries),
            (_across(key, size.key), grid.keys),
            (_across(value, size.key), grid.keys),
            (_segments(query_segments, size.query, -1), grid.query_segments),
            (_segments(key_segments, size.key, 0), grid.key_segments),
        ],
        [
            (jax.ShapeDtypeStruct(across.shape, query.dtype), grid.queries),
            (jax.ShapeDtypeStruct((*across.shape[:2], 1, across.shape[3]), jnp.float32), grid.totals),
        ],
        [(1, grid.held_slots), (1, grid.held_slots), (query.shape[3], grid.held_slots)],
        products=2,
    )
    return _back(out, query), log_total


def _backward(
    operands: Operands[Ranges],
    log_total: Float[Array, "r h 1 s"],
    gradient: Float[Array, "r s h d"],
    given: Float[Array, "r h s"],
) -> tuple[Float[Array, "r s h d"], Float[Array, "r t h d"], Float[Array, "r t h d"]]:
    query, key, value, query_segments, key_segments, ranges = operands
    size, width = ranges.blocks, query.shape[3]
    across, keys = _across(query, size.query), _across(key, size.key)
    grid = _Grid(across, keys, ranges, by_query=False)
    given = jnp.pad(given, ((0, 0), (0, 0), (0, across.shape[3] - given.shape[2])))[:, :, None]
    like_query, like_key = (jax.ShapeDtypeStruct(part.shape, query.dtype) for part in (across, keys))
    to_query, to_key, to_value = grid.call(
        _gradient_kernel,
        [
            (across, grid.queries),
            (keys, grid.keys),
            (_across(value, size.key), grid.keys),
            (_segments(query_segments, size.query, -1), grid.query_segments),
            (_segments(key_segments, size.key, 0), grid.key_segments),
            (_across(gradient, size.query), grid.queries),
            (log_total, grid.totals),
            (given, grid.totals),
        ],
        [(like_query, grid.row_of_queries), (like_key, grid.keys), (like_key, grid.keys)],
        [(width, across.shape[3]), (width, grid.held_slots), (width, grid.held_slots)],
        products=5,
    )
    return _back(to_query, query), _back(to_key, key), _back(to_value, value)


pallas_tpu = with_gradient(_forward, _backward)


def _forward_kernel(
    first_fetched: Any, fetched: Any, first: Any, count: Any, query: Any, key: Any, value: Any, asking: Any, known: Any,
    out: Any, log_total: Any, highest: Any, total: Any, attended: Any, *, size: Blocks, blocks: int,
) -> None:  # fmt: skip
    heads = range(query.shape[0])

    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        highest[...] = jnp.full_like(highest, 0.5 * NEVER)
        total[...] = jnp.zeros_like(total)
        attended[...] = jnp.zeros_like(attended)

    def attend(block: Array, low: Array, high: Array, start: Array) -> None:
        here = _slots(block, size.query)
        segments = asking[:, here]
        asked = [query[head, :, here] for head in heads]

        def visit(place: Array, carry: list[tuple[Array, Array, Array]]) -> list[tuple[Array, Array, Array]]:
            there = _slots(place - start, size.key)
            seen = _column(known[:, there]) == segments
            met = []
            for head, (highest, total, attended) in zip(heads, carry, strict=True):
                scores = jnp.where(seen, _dot(key[head, :, there], asked[head], 0, 0), NEVER)
                # Held above `NEVER`, so that the weights of a query that has met no key yet are zero.
                higher = jnp.maximum(highest, scores.max(axis=0, keepdims=True))
                weights = jnp.exp(scores - higher)
                shrunk = jnp.exp(highest - higher)
                gained = _dot(value[head, :, there], weights.astype(value.dtype), 1, 0)
                summed = total * shrunk + weights.sum(axis=0, keepdims=True)
                met.append((higher, summed, attended * shrunk + gained))
            return met

        kept = highest, total, attended
        carry = [tuple(part[head, :, here] for part in kept) for head in heads]
        for head, parts in zip(heads, jax.lax.fori_loop(low, high, visit, carry), strict=True):
            for part, new in zip(kept, parts, strict=True):
                part[head, :, here] = new

    _each_block(first_fetched, fetched, first, count, attend, size.fetched, blocks)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _() -> None:
        kept = jnp.where(total[...] > 0, total[...], 1.0)
        out[...] = (attended[...] / kept).astype(out.dtype)
        log_total[...] = highest[...] + jnp.log(kept)


def _gradient_kernel(
    first_fetched: Any, fetched: Any, first: Any, count: Any, query: Any, key: Any, value: Any, asking: Any, known: Any,
    gradient: Any, log_total: Any, given: Any, to_query: Any, to_key: Any, to_value: Any, collected_query: Any,
    collected_key: Any, collected_value: Any, *, size: Blocks, blocks: int,
) -> None:  # fmt: skip
    """Gradients of queries collect over all keys, so their whole row stays on the chip until the heads change."""
    heads, all_queries = range(query.shape[0]), collected_query.shape[2] // size.query
    held, visit_number = pl.program_id(2), pl.program_id(3)

    @pl.when((held == 0) & (visit_number == 0))
    def _() -> None:
        @pl.loop(0, all_queries)
        def _(place: Array) -> None:
            at = _slots(place, size.query)
            collected_query[:, :, at] = jnp.zeros((*collected_query.shape[:2], size.query), jnp.float32)

    @pl.when(visit_number == 0)
    def _() -> None:
        collected_key[...] = jnp.zeros_like(collected_key)
        collected_value[...] = jnp.zeros_like(collected_value)

    def collect(block: Array, low: Array, high: Array, start: Array) -> None:
        here = _slots(block, size.key)
        segments = _column(known[:, here])
        keys, values = ([part[head, :, here] for head in heads] for part in (key, value))

        def visit(place: Array, carry: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
            there, overall = _slots(place - start, size.query), _slots(place, size.query)
            seen = segments == asking[:, there]
            met = []
            for head, (to_key, to_value) in zip(heads, carry, strict=True):
                asked, wanted = query[head, :, there], gradient[head, :, there]
                scores = _dot(keys[head], asked, 0, 0) - log_total[head, :, there]
                weights = jnp.exp(jnp.where(seen, scores, NEVER))
                to_weights = _dot(values[head], wanted, 0, 0) - given[head, :, there]
                to_scores = (weights * to_weights).astype(asked.dtype)
                collected_query[head, :, overall] += _dot(keys[head], to_scores, 1, 0)
                gained = _dot(asked, to_scores, 1, 1), _dot(wanted, weights.astype(wanted.dtype), 1, 1)
                met.append((to_key + gained[0], to_value + gained[1]))
            return met

        kept = collected_key, collected_value
        carry = [tuple(part[head, :, here] for part in kept) for head in heads]
        for head, parts in zip(heads, jax.lax.fori_loop(low, high, visit, carry), strict=True):
            for part, new in zip(kept, parts, strict=True):
                part[head, :, here] = new

    _each_block(first_fetched, fetched, first, count, collect, size.fetched, blocks)
    is_last = visit_number == pl.num_programs(3) - 1

    @pl.when(is_last)
    def _() -> None:
        to_key[...] = collected_key[...].astype(to_key.dtype)
        to_value[...] = collected_value[...].astype(to_value.dtype)

    @pl.when(is_last & (held == pl.num_programs(2) - 1))
    def _() -> None:
        @pl.loop(0, all_queries)
        def _(place: Array) -> None:
            at = _slots(place, size.query)
            to_query[:, :, at] = collected_query[:, :, at].astype(to_query.dtype)


def _each_block(
    first_fetched: Any, fetched: Any, first: Any, count: Any, work: Callable[..., None], together: int, blocks: int
) -> None:
    """Calls `work` for the held blocks of this step of the grid, with what they are to visit of what is fetched.

    Args:
      first_fetched, fetched: ranges of what is held, in what is fetched together.
      first, count: ranges of a block, in blocks.
      work: (held block of this step, first and last to be visited, first that is fetched).
      together: blocks that are held or fetched together.
      blocks: held blocks of a row.
    """
    row, held, visit = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    at = row * pl.num_programs(2) + held

    @pl.when(visit < fetched[at])
    def _() -> None:
        start = (first_fetched[at] + visit) * together

        @pl.loop(0, jnp.minimum(together, blocks - held * together))
        def _(place: Array) -> None:
            block = row * blocks + held * together + place
            last = first[block] + count[block]
            work(place, jnp.maximum(first[block], start), jnp.minimum(last, start + together), start)


def _slots(block: Array, size: int) -> Any:
    return pl.ds(pl.multiple_of(block * size, size), size)


def _column(segments: Int[Array, "1 k"]) -> Int[Array, "k 1"]:
    return jnp.broadcast_to(segments, (_LANES, segments.shape[1])).T[:, :1]


def _dot(left: Float[Array, "a b"], right: Float[Array, "c d"], along: int, across: int) -> Float[Array, "m n"]:
    """The product of two matrices over axis `along` of the one and `across` of the other, in float32."""
    axes = (((along,), (across,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


class _Grid:
    """The grid of a kernel that holds queries (or keys), and where each kind of operand lies on it.

    Attributes:
      queries, keys, query_segments, key_segments, totals: block specifications of operands by their shapes:
        [R, H, D, S], [R, H, D, T], [R, 1, S], [R, 1, T] and [R, H, 1, S].
      row_of_queries: of a result [R, H, D, S] that stays until the heads change.
      held_slots: slots that a step holds.
    """

    def __init__(
        self, queries: Float[Array, "r h d s"], keys: Float[Array, "r h d t"], ranges: Ranges, *, by_query: bool
    ) -> None:
        size, fetched = ranges.blocks, ranges.fetched or ranges
        rows, heads, width, slots = queries.shape
        self._size = size
        self._visits = (
            (fetched.first_key, fetched.keys, ranges.first_key, ranges.keys)
            if by_query
            else (fetched.first_query, fetched.queries, ranges.first_query, ranges.queries)
        )
        held = self._visits[0].shape[1]
        # Two heads at a time, where the gradients of a whole row of both leave room.
        row_bytes = width * slots * (4 + queries.dtype.itemsize)
        together = 2 if heads % 2 == 0 and width <= _LANES and 2 * row_bytes <= 10 * _MIB else 1
        self._grid = (rows, heads // together, held)
        self._heads, self._row_bytes = together, together * row_bytes
        self._scores, self._width = rows * heads * slots * keys.shape[3], width
        query_slots, key_slots = (
            min(block * size.fetched, part.shape[3]) for block, part in ((size.query, queries), (size.key, keys))
        )
        self.held_slots = query_slots if by_query else key_slots

        def staying(row: Array, held_block: Array, visit: Array, first: Any, count: Any, *_: Any) -> Array:  # noqa: ARG001
            return held_block

        def moving(row: Array, held_block: Array, visit: Array, first: Any, count: Any, *_: Any) -> Array:
            at = row * held + held_block
            return first[at] + jnp.clip(visit, 0, jnp.maximum(count[at] - 1, 0))

        query_block, key_block = (staying, moving) if by_query else (moving, staying)

        def spec(shape: tuple[int | None, ...], place: Callable[..., tuple[Any, ...]], block: Any) -> pl.BlockSpec:
            return pl.BlockSpec(shape, lambda row, head, *at: place(row, head, block(row, *at)))

        self.queries = spec((None, together, width, query_slots), lambda r, h, b: (r, h, 0, b), query_block)
        self.totals = spec((None, together, 1, query_slots), lambda r, h, b: (r, h, 0, b), query_block)
        self.keys = spec((None, together, width, key_slots), lambda r, h, b: (r, h, 0, b), key_block)
        self.query_segments = spec((None, 1, query_slots), lambda r, _, b: (r, 0, b), query_block)
        self.key_segments = spec((None, 1, key_slots), lambda r, _, b: (r, 0, b), key_block)
        # Written once for all of a head's work: not worth a second copy on the chip.
        self.row_of_queries = pl.BlockSpec(
            (None, together, width, slots), lambda row, head, *_: (row, head, 0, 0), pipeline_mode=pl.Buffered(1)
        )

    def call(
        self,
        kernel: Callable[..., None],
        operands: Sequence[tuple[Array, pl.BlockSpec]],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[tuple[int, int]],
        products: int,
    ) -> list[Array]:
        """Runs a kernel of so many products per pair of blocks; its cost is stated as if every pair were visited."""
        cost = pl.CostEstimate(
            flops=2 * products * self._scores * self._width,
            transcendentals=self._scores,
            bytes_accessed=sum(_bytes(array) for array, _ in operands) + sum(_bytes(shape) for shape, _ in results),
        )
        most = jnp.maximum(self._visits[1].max(), 1)
        compute = pl.pallas_call(
            functools.partial(kernel, size=self._size, blocks=self._visits[2].shape[1]),
            out_shape=[shape for shape, _ in results],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4,
                # A step of the grid costs something even where there is nothing to visit, and few need many.
                grid=(*self._grid, most),
                in_specs=[spec for _, spec in operands],
                out_specs=[spec for _, spec in results],
                scratch_shapes=[pltpu.VMEM((self._heads, *shape), jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=max(16 * _MIB, self._row_bytes + _BESIDE),
            ),
            cost_estimate=cost,
            interpret=interpretation(),
            name=f"segment_attention{kernel.__name__.removesuffix('_kernel')}",
        )
        return compute(*(part.reshape(-1) for part in self._visits), *(array for array, _ in operands))


def _segments(segments: Int[Array, "r s"], block: int, fill: int) -> Int[Array, "r 1 s"]:
    return pad_slots(segments, block, fill)[:, None]


def _across(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h d s"]:
    return pad_slots(tokens, block).transpose(0, 2, 3, 1)


def _back(heads: Float[Array, "r h d s"], like: Float[Array, "r t h d"]) -> Float[Array, "r t h d"]:
    return heads.transpose(0, 3, 1, 2)[:, : like.shape[1]]


def _bytes(array: Array | jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
