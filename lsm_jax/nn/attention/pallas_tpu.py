"""Flash attention on TPUs: two Mosaic kernels, forward and backward, that fetch many blocks per grid step.

A grid step costs a third of a microsecond, as much as 256 x 256 scores, but blocks as large as that reach over the ends
of windows. So a step fetches `blocks_per_fetch` small blocks of both sides and loops over the pairs in range, for two
heads at a time, so that one computes while the other waits for its matrix products.

The grid is [rows, heads, resident fetches, visits]: a step keeps one fetch of one side resident and visits those of the
other side in turn. The number of visits is the most that any resident fetch needs, known only at run time. Block ranges
are prefetched to scalar memory, so that the pipeline knows what to fetch next; beyond a range's end the index map
repeats its last block, which fetches nothing.

Heads are [R, H, D, S]: a head of 64 would fill only half of the 128 lanes. Scores are [keys, queries], so that
what belongs to a query (running max and sum, segment id) is a row of lanes and reductions run over sublanes.
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

from lsm_jax.nn.attention.blocks import QUERY_PADDING, BlockRanges, BlockSizes, pad_to_blocks
from lsm_jax.nn.attention.flash import MASK_VALUE, Gradients, Inputs, flash_attention, worst_case_cost
from lsm_jax.nn.attention.platforms import interpret_mode

_LANES = 128
_FETCHED_SLOTS = 1024  # of either side in a grid step
_MIB = 2**20
_WORKING_BYTES = 4 * _MIB  # of a grid step: blocks being fetched, and scores


def block_sizes(query_slots: int, key_slots: int, head_size: int) -> BlockSizes:  # noqa: ARG001
    """Blocks of one vector of lanes: smaller ones waste the matrix unit, larger ones reach over the ends of windows."""
    return BlockSizes(_LANES, _LANES, _FETCHED_SLOTS // _LANES // (1 if head_size <= _LANES else 2))


def _forward(inputs: Inputs[BlockRanges]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h 1 s"]]:
    grid = _Grid(inputs, hold_queries=True)
    rows, heads, width, slots = grid.query_shape.shape
    out, lse = grid.call(
        _forward_kernel,
        grid.inputs,
        [
            (grid.query_shape, grid.query_spec),
            (jax.ShapeDtypeStruct((rows, heads, 1, slots), jnp.float32), grid.per_query_spec),
        ],
        scratch=[(1, grid.resident_slots), (1, grid.resident_slots), (width, grid.resident_slots)],
        products=2,
    )
    return _slots_first(out, inputs.query), lse


def _backward(inputs: Inputs[BlockRanges], lse: Float[Array, "r h 1 s"], do: Array, delta: Array) -> Gradients:
    grid = _Grid(inputs, hold_queries=False)
    width, slots = grid.query_shape.shape[2:]
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, slots - delta.shape[2])))[:, :, None]
    dq, dk, dv = grid.call(
        _backward_kernel,
        [
            *grid.inputs,
            (_slots_last(do, inputs.block_mask.block_sizes.query), grid.query_spec),
            (lse, grid.per_query_spec),
            (delta, grid.per_query_spec),
        ],
        [(grid.query_shape, grid.query_row_spec), (grid.key_shape, grid.key_spec), (grid.key_shape, grid.key_spec)],
        scratch=[(width, slots), (width, grid.resident_slots), (width, grid.resident_slots)],
        products=5,
    )
    return _slots_first(dq, inputs.query), _slots_first(dk, inputs.key), _slots_first(dv, inputs.value)


pallas_tpu = flash_attention(_forward, _backward)


def _forward_kernel(
    first_fetch: Any, num_fetches: Any, first: Any, count: Any, query: Any, key: Any, value: Any, query_segments: Any,
    key_segments: Any, out: Any, lse: Any, row_max: Any, row_sum: Any, acc: Any, *, size: BlockSizes, blocks: int,
) -> None:  # fmt: skip
    heads = range(query.shape[0])

    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        row_max[...] = jnp.full_like(row_max, 0.5 * MASK_VALUE)
        row_sum[...] = jnp.zeros_like(row_sum)
        acc[...] = jnp.zeros_like(acc)

    def attend(block: Array, low: Array, high: Array, start: Array) -> None:
        own = _slots(block, size.query)
        q_segments = query_segments[:, own]
        q_blocks = [query[head, :, own] for head in heads]

        def visit(other: Array, carry: list[tuple[Array, Array, Array]]) -> list[tuple[Array, Array, Array]]:
            at = _slots(other - start, size.key)
            seen = _column(key_segments[:, at]) == q_segments
            updated = []
            for head, (row_max, row_sum, acc) in zip(heads, carry, strict=True):
                scores = jnp.where(seen, _dot(key[head, :, at], q_blocks[head], 0, 0), MASK_VALUE)
                # `row_max` starts above `MASK_VALUE`, so that a query that has met no key yet has zero weights.
                new_max = jnp.maximum(row_max, scores.max(axis=0, keepdims=True))
                weights = jnp.exp(scores - new_max)
                rescale = jnp.exp(row_max - new_max)
                gained = _dot(value[head, :, at], weights.astype(value.dtype), 1, 0)
                new_sum = row_sum * rescale + weights.sum(axis=0, keepdims=True)
                updated.append((new_max, new_sum, acc * rescale + gained))
            return updated

        _update((row_max, row_sum, acc), own, lambda carry: jax.lax.fori_loop(low, high, visit, carry))

    _for_each_block(first_fetch, num_fetches, first, count, attend, size.blocks_per_fetch, blocks)

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _() -> None:
        total = jnp.where(row_sum[...] > 0, row_sum[...], 1.0)
        out[...] = (acc[...] / total).astype(out.dtype)
        lse[...] = row_max[...] + jnp.log(total)


def _backward_kernel(
    first_fetch: Any, num_fetches: Any, first: Any, count: Any, query: Any, key: Any, value: Any, query_segments: Any,
    key_segments: Any, do: Any, lse: Any, delta: Any, dq: Any, dk: Any, dv: Any, dq_acc: Any, dk_acc: Any, dv_acc: Any,
    *, size: BlockSizes, blocks: int,
) -> None:  # fmt: skip
    """dq sums over all keys, so the accumulator of its whole row stays on the chip until the heads change."""
    heads, query_blocks = range(query.shape[0]), dq_acc.shape[2] // size.query
    fetch, visit_number = pl.program_id(2), pl.program_id(3)

    @pl.when((fetch == 0) & (visit_number == 0))
    def _() -> None:
        @pl.loop(0, query_blocks)
        def _(block: Array) -> None:
            at = _slots(block, size.query)
            dq_acc[:, :, at] = jnp.zeros((*dq_acc.shape[:2], size.query), jnp.float32)

    @pl.when(visit_number == 0)
    def _() -> None:
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def collect(block: Array, low: Array, high: Array, start: Array) -> None:
        own = _slots(block, size.key)
        k_segments = _column(key_segments[:, own])
        k_blocks, v_blocks = ([ref[head, :, own] for head in heads] for ref in (key, value))

        def visit(other: Array, carry: list[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
            at, at_in_row = _slots(other - start, size.query), _slots(other, size.query)
            seen = k_segments == query_segments[:, at]
            updated = []
            for head, (dk, dv) in zip(heads, carry, strict=True):
                q_block, do_block = query[head, :, at], do[head, :, at]
                scores = _dot(k_blocks[head], q_block, 0, 0) - lse[head, :, at]
                weights = jnp.exp(jnp.where(seen, scores, MASK_VALUE))
                d_weights = _dot(v_blocks[head], do_block, 0, 0) - delta[head, :, at]
                d_scores = (weights * d_weights).astype(q_block.dtype)
                dq_acc[head, :, at_in_row] += _dot(k_blocks[head], d_scores, 1, 0)
                gained = _dot(q_block, d_scores, 1, 1), _dot(do_block, weights.astype(do_block.dtype), 1, 1)
                updated.append((dk + gained[0], dv + gained[1]))
            return updated

        _update((dk_acc, dv_acc), own, lambda carry: jax.lax.fori_loop(low, high, visit, carry))

    _for_each_block(first_fetch, num_fetches, first, count, collect, size.blocks_per_fetch, blocks)
    is_last = visit_number == pl.num_programs(3) - 1

    @pl.when(is_last)
    def _() -> None:
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)

    @pl.when(is_last & (fetch == pl.num_programs(2) - 1))
    def _() -> None:
        @pl.loop(0, query_blocks)
        def _(block: Array) -> None:
            at = _slots(block, size.query)
            dq[:, :, at] = dq_acc[:, :, at].astype(dq.dtype)


def _for_each_block(
    first_fetch: Any, num_fetches: Any, first: Any, count: Any, work: Callable[..., None], per_fetch: int, blocks: int
) -> None:
    """Calls `work` for the resident blocks of this grid step.

    Args:
      first_fetch, num_fetches: for each resident fetch, the range of fetches of the other side that it visits.
      first, count: for each resident block, the range of blocks of the other side.
      work: takes the resident block's number in its fetch, the first and last (exclusive) block of the other side to
        visit in this step, and the first block of the visited fetch.
      per_fetch: blocks in a fetch.
      blocks: resident blocks in a row.
    """
    row, resident, visit = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    fetch = row * pl.num_programs(2) + resident

    @pl.when(visit < num_fetches[fetch])
    def _() -> None:
        start = (first_fetch[fetch] + visit) * per_fetch

        @pl.loop(0, jnp.minimum(per_fetch, blocks - resident * per_fetch))
        def _(number: Array) -> None:
            block = row * blocks + resident * per_fetch + number
            last = first[block] + count[block]
            work(number, jnp.maximum(first[block], start), jnp.minimum(last, start + per_fetch), start)


def _update(refs: Sequence[Any], at: Any, loop: Callable[[Any], Any]) -> None:
    """Replaces a block of some accumulators by what `loop` makes of it: a list, by head, of their values."""
    heads = range(refs[0].shape[0])
    for head, values in zip(heads, loop([tuple(ref[head, :, at] for ref in refs) for head in heads]), strict=True):
        for ref, value in zip(refs, values, strict=True):
            ref[head, :, at] = value


def _slots(block: Array, size: int) -> Any:
    return pl.ds(pl.multiple_of(block * size, size), size)


def _column(segments: Int[Array, "1 k"]) -> Int[Array, "k 1"]:
    return jnp.broadcast_to(segments, (_LANES, segments.shape[1])).T[:, :1]


def _dot(left: Float[Array, "a b"], right: Float[Array, "c d"], left_axis: int, right_axis: int) -> Float[Array, "m n"]:
    """The matrix product over these axes, in float32."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


class _Grid:
    """The inputs padded to whole blocks, and the grid of a kernel that holds queries (or keys).

    Attributes:
      inputs: query, key, value [R, H, D, S], query segments and key segments [R, 1, S], with their block specs.
      query_shape, key_shape: of the padded heads.
      query_spec, key_spec: block specs of heads [R, H, D, S].
      per_query_spec: block spec of lse and delta [R, H, 1, S].
      query_row_spec: block spec of a result like `query` that stays on the chip until the heads change.
      resident_slots: slots of a resident fetch.
    """

    def __init__(self, inputs: Inputs[BlockRanges], *, hold_queries: bool) -> None:
        query, key, value, query_segments, key_segments, ranges = inputs
        self._size = size = ranges.block_sizes
        arrays = _slots_last(query, size.query), _slots_last(key, size.key), _slots_last(value, size.key)
        segments = (
            pad_to_blocks(query_segments, size.query, QUERY_PADDING)[:, None],
            pad_to_blocks(key_segments, size.key)[:, None],
        )
        self.query_shape, self.key_shape = (jax.ShapeDtypeStruct(array.shape, query.dtype) for array in arrays[:2])
        rows, heads, width, slots = self.query_shape.shape
        fetches = ranges.fetches or ranges
        self._ranges = (
            (fetches.first_key_block, fetches.num_key_blocks, ranges.first_key_block, ranges.num_key_blocks)
            if hold_queries
            else (
                fetches.first_query_block,
                fetches.num_query_blocks,
                ranges.first_query_block,
                ranges.num_query_blocks,
            )
        )
        num_resident = self._ranges[0].shape[1]
        # Two heads at a time, if dq of both rows fits the chip.
        row_bytes = width * slots * (4 + query.dtype.itemsize)
        together = 2 if heads % 2 == 0 and width <= _LANES and 2 * row_bytes <= 10 * _MIB else 1
        self._grid = (rows, heads // together, num_resident)
        self._heads, self._row_bytes = together, together * row_bytes
        query_slots = min(size.query * size.blocks_per_fetch, slots)
        key_slots = min(size.key * size.blocks_per_fetch, self.key_shape.shape[3])
        self.resident_slots = query_slots if hold_queries else key_slots

        def resident_fetch(row: Array, fetch: Array, visit: Array, first: Any, count: Any, *_: Any) -> Array:  # noqa: ARG001
            return fetch

        def visited_fetch(row: Array, fetch: Array, visit: Array, first: Any, count: Any, *_: Any) -> Array:
            at = row * num_resident + fetch
            return first[at] + jnp.clip(visit, 0, jnp.maximum(count[at] - 1, 0))

        of_query, of_key = (resident_fetch, visited_fetch) if hold_queries else (visited_fetch, resident_fetch)

        def heads_spec(height: int, slots: int, fetch: Callable[..., Array]) -> pl.BlockSpec:
            shape = (None, together, height, slots)
            return pl.BlockSpec(shape, lambda row, head, *at: (row, head, 0, fetch(row, *at)))

        def segments_spec(slots: int, fetch: Callable[..., Array]) -> pl.BlockSpec:
            return pl.BlockSpec((None, 1, slots), lambda row, _, *at: (row, 0, fetch(row, *at)))

        self.query_spec, self.key_spec = heads_spec(width, query_slots, of_query), heads_spec(width, key_slots, of_key)
        self.per_query_spec = heads_spec(1, query_slots, of_query)
        # Written once per head, so it needs no second buffer.
        self.query_row_spec = pl.BlockSpec(
            (None, together, width, slots), lambda row, head, *_: (row, head, 0, 0), pipeline_mode=pl.Buffered(1)
        )
        self.inputs = [
            *zip(arrays, (self.query_spec, self.key_spec, self.key_spec), strict=True),
            *zip(segments, (segments_spec(query_slots, of_query), segments_spec(key_slots, of_key)), strict=True),
        ]

    def call(
        self,
        kernel: Callable[..., None],
        operands: Sequence[tuple[Array, pl.BlockSpec]],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[tuple[int, int]],
        products: int,
    ) -> list[Array]:
        """Runs a kernel of so many matrix products per block pair."""
        rows, heads, width, slots = self.query_shape.shape
        arrays: list[Any] = [*(array for array, _ in operands), *(shape for shape, _ in results)]
        compute = pl.pallas_call(
            functools.partial(kernel, size=self._size, blocks=self._ranges[2].shape[1]),
            out_shape=[shape for shape, _ in results],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4,
                # As many visits as needed: a grid step has a cost even where there is nothing to visit.
                grid=(*self._grid, jnp.maximum(self._ranges[1].max(), 1)),
                in_specs=[spec for _, spec in operands],
                out_specs=[spec for _, spec in results],
                scratch_shapes=[pltpu.VMEM((self._heads, *shape), jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=max(16 * _MIB, self._row_bytes + _WORKING_BYTES),
            ),
            cost_estimate=worst_case_cost(products, rows * heads * slots * self.key_shape.shape[3], width, arrays),
            interpret=interpret_mode(),
            name=f"segment_attention{kernel.__name__.removesuffix('_kernel')}",
        )
        return compute(*(part.reshape(-1) for part in self._ranges), *(array for array, _ in operands))


def _slots_last(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h d s"]:
    return pad_to_blocks(tokens, block).transpose(0, 2, 3, 1)


def _slots_first(heads: Float[Array, "r h d s"], like: Float[Array, "r t h d"]) -> Float[Array, "r t h d"]:
    return heads.transpose(0, 3, 1, 2)[:, : like.shape[1]]
