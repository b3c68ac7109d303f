"""Flash attention on NVIDIA GPUs: Pallas kernels for Triton that loop over the blocks in range.

A program holds a block of queries (or of keys) and loops over the blocks of the other side that the block mask names.
Heads stay [R, S, H, D], as the projections leave them. After FlashAttention-2 (Dao, 2023, arXiv:2307.08691): a kernel
for the forward pass, one for dq, and one for dk and dv.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from lsm_jax.nn.attention.blocks import QUERY_PADDING, BlockRanges, BlockSizes, pad_to_blocks
from lsm_jax.nn.attention.flash import MASK_VALUE, Gradients, Inputs, flash_attention, worst_case_cost
from lsm_jax.nn.attention.platforms import interpret_mode

try:  # JAX 0.11 announces that it will be removed; everything else must work without it
    from jax.experimental.pallas import triton as plgpu
except ImportError:
    plgpu = None  # type: ignore[assignment]

PLATFORMS = frozenset({"gpu"} if plgpu else ())


def block_sizes(query_slots: int, key_slots: int, head_size: int) -> BlockSizes:  # noqa: ARG001
    """Powers of two, which Triton requires, small enough for a program's blocks to fit its registers.

    As measured on an H100; larger ones reach further over the ends of segments and are no faster
    (docs/explanation/attention.md).
    """
    return BlockSizes(64, 64) if head_size <= 128 else BlockSizes(32, 32)


def _num_stages(head_size: int) -> tuple[int, int, int]:
    """Pipeline stages of the kernels for the forward pass, dq, and dk and dv; as measured on an H100."""
    return (2, 2, 3) if head_size <= 64 else (3, 2, 2)


def _forward(inputs: Inputs[BlockRanges]) -> tuple[Float[Array, "r s h d"], Float[Array, "r h s"]]:
    layout = _Layout(inputs)
    own = layout.query_block
    out, lse = layout.call(
        _forward_kernel,
        layout.inputs(own, layout.key_row) + layout.key_range,
        [(layout.query_shape, own.heads), (layout.lse_shape, own.per_query)],
        products=2,
        num_stages=layout.num_stages[0],
    )
    return out[:, : inputs.query.shape[1]], lse


def _backward(inputs: Inputs[BlockRanges], lse: Float[Array, "r h s"], do: Array, delta: Array) -> Gradients:
    layout = _Layout(inputs)
    do = pad_to_blocks(do, layout.size.query)
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, do.shape[1] - delta.shape[2])))

    def operands(of_query: _Side, of_key: _Side) -> _Operands:
        gradients = [(do, of_query.heads), (lse, of_query.per_query), (delta, of_query.per_query)]
        return layout.inputs(of_query, of_key) + gradients

    (dq,) = layout.call(
        _backward_dq_kernel,
        operands(layout.query_block, layout.key_row) + layout.key_range,
        [(layout.query_shape, layout.query_block.heads)],
        products=3,
        num_stages=layout.num_stages[1],
    )
    dk, dv = layout.call(
        _backward_dkv_kernel,
        operands(layout.query_row, layout.key_block) + layout.query_range,
        [(layout.key_shape, layout.key_block.heads)] * 2,
        products=4,
        num_stages=layout.num_stages[2],
    )
    key_slots = inputs.key.shape[1]
    return dq[:, : inputs.query.shape[1]], dk[:, :key_slots], dv[:, :key_slots]


pallas_gpu = flash_attention(_forward, _backward)


def _forward_kernel(
    query: Any, key: Any, value: Any, query_segments: Any, key_segments: Any, first: Any, count: Any, out: Any,
    lse: Any, *, size: BlockSizes, width: int,
) -> None:  # fmt: skip
    load, store = _masked_access(query, width)
    q_block, q_segments = load(query), query_segments[...]

    def visit(block: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        row_max, row_sum, acc = carry
        at = pl.ds(block * size.key, size.key)
        seen = q_segments[:, None] == key_segments[at][None]
        scores = jnp.where(seen, _dot(q_block, load(key.at[at]).T), MASK_VALUE)
        # `row_max` starts above `MASK_VALUE`, so that a query that has met no key yet has zero weights.
        new_max = jnp.maximum(row_max, scores.max(axis=1))
        weights = jnp.exp(scores - new_max[:, None])
        rescale = jnp.exp(row_max - new_max)
        gained = _dot(weights.astype(value.dtype), load(value.at[at]))
        return new_max, row_sum * rescale + weights.sum(axis=1), acc * rescale[:, None] + gained

    start = (
        jnp.full(size.query, 0.5 * MASK_VALUE, jnp.float32),
        jnp.zeros(size.query, jnp.float32),
        jnp.zeros(q_block.shape, jnp.float32),
    )
    row_max, row_sum, acc = _loop(first, count, visit, start)
    row_sum = jnp.where(row_sum > 0, row_sum, 1.0)
    store(out, acc / row_sum[:, None])
    lse[...] = row_max + jnp.log(row_sum)


def _backward_dq_kernel(
    query: Any, key: Any, value: Any, query_segments: Any, key_segments: Any, do: Any, lse: Any, delta: Any,
    first: Any, count: Any, dq: Any, *, size: BlockSizes, width: int,
) -> None:  # fmt: skip
    load, store = _masked_access(query, width)
    q_block, do_block, q_segments = load(query), load(do), query_segments[...]
    lse_block, delta_block = lse[...], delta[...]

    def visit(block: Array, acc: Array) -> Array:
        at = pl.ds(block * size.key, size.key)
        k_block = load(key.at[at])
        seen = q_segments[:, None] == key_segments[at][None]
        weights = jnp.exp(jnp.where(seen, _dot(q_block, k_block.T) - lse_block[:, None], MASK_VALUE))
        d_scores = weights * (_dot(do_block, load(value.at[at]).T) - delta_block[:, None])
        return acc + _dot(d_scores.astype(k_block.dtype), k_block)

    store(dq, _loop(first, count, visit, jnp.zeros(q_block.shape, jnp.float32)))


def _backward_dkv_kernel(
    query: Any, key: Any, value: Any, query_segments: Any, key_segments: Any, do: Any, lse: Any, delta: Any,
    first: Any, count: Any, dk: Any, dv: Any, *, size: BlockSizes, width: int,
) -> None:  # fmt: skip
    load, store = _masked_access(key, width)
    k_block, v_block, k_segments = load(key), load(value), key_segments[...]

    def visit(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        dk_acc, dv_acc = carry
        at = pl.ds(block * size.query, size.query)
        q_block, do_block = load(query.at[at]), load(do.at[at])
        seen = k_segments[:, None] == query_segments[at][None]
        weights = jnp.exp(jnp.where(seen, _dot(k_block, q_block.T) - lse[at][None], MASK_VALUE))
        dv_acc += _dot(weights.astype(do_block.dtype), do_block)
        d_scores = weights * (_dot(v_block, do_block.T) - delta[at][None])
        return dk_acc + _dot(d_scores.astype(q_block.dtype), q_block), dv_acc

    nothing = jnp.zeros(k_block.shape, jnp.float32)
    dk_acc, dv_acc = _loop(first, count, visit, (nothing, nothing))
    store(dk, dk_acc)
    store(dv, dv_acc)


def _loop(first: Any, count: Any, visit: Callable[[Array, Any], Any], start: Any) -> Any:
    return jax.lax.fori_loop(first[()], first[()] + count[()], visit, start)


def _masked_access(heads: Any, width: int) -> tuple[Callable[[Any], Array], Callable[[Any, Array], None]]:
    """Loads and stores blocks that are wider than a head, whose size need not be a power of two."""
    mask = (jnp.arange(heads.shape[-1]) < width)[None]

    def load(ref: Any) -> Array:
        return plgpu.load(ref, mask=mask, other=0.0)

    def store(ref: Any, block: Array) -> None:
        plgpu.store(ref, block.astype(ref.dtype), mask=mask)

    return load, store


def _dot(left: Float[Array, "m k"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    return jnp.dot(left, right, preferred_element_type=jnp.float32)


_Operands = list[tuple[Array, pl.BlockSpec]]


class _Side:
    """Block specs of one side: heads [R, S, H, D], segment ids [R, S], and lse and delta [R, H, S].

    A program gets its own block of `slots` if it `holds` this side, else the whole row of `slots`.
    """

    def __init__(self, slots: int, width: int, *, holds: bool) -> None:
        def at(block: Array) -> Array | int:
            return block if holds else 0

        self.heads = pl.BlockSpec((None, slots, None, width), lambda i, row, head: (row, at(i), head, 0))
        self.segments = pl.BlockSpec((None, slots), lambda i, row, head: (row, at(i)))  # noqa: ARG005
        self.per_query = pl.BlockSpec((None, None, slots), lambda i, row, head: (row, head, at(i)))


class _Layout:
    """The inputs padded to whole blocks, and how a program sees them."""

    def __init__(self, inputs: Inputs[BlockRanges]) -> None:
        query, key, value, query_segments, key_segments, block_mask = inputs
        self.size = size = block_mask.block_sizes
        self._heads = pad_to_blocks(query, size.query), pad_to_blocks(key, size.key), pad_to_blocks(value, size.key)
        self._segments = (
            pad_to_blocks(query_segments, size.query, QUERY_PADDING),
            pad_to_blocks(key_segments, size.key),
        )
        self._width = query.shape[3]
        self.num_stages = _num_stages(self._width)
        self.query_shape, self.key_shape = (jax.ShapeDtypeStruct(part.shape, query.dtype) for part in self._heads[:2])
        rows, query_slots, heads, _ = self.query_shape.shape
        key_slots = self.key_shape.shape[1]
        self.lse_shape = jax.ShapeDtypeStruct((rows, heads, query_slots), jnp.float32)
        width = max(pl.next_power_of_2(self._width), 16)  # 16 is the least that a matrix unit takes
        self.query_block, self.key_block = _Side(size.query, width, holds=True), _Side(size.key, width, holds=True)
        self.query_row, self.key_row = _Side(query_slots, width, holds=False), _Side(key_slots, width, holds=False)
        spec = pl.BlockSpec((None, None), lambda i, row, head: (row, i))  # noqa: ARG005
        self.key_range = [(block_mask.first_key_block, spec), (block_mask.num_key_blocks, spec)]
        self.query_range = [(block_mask.first_query_block, spec), (block_mask.num_query_blocks, spec)]

    def inputs(self, of_query: _Side, of_key: _Side) -> _Operands:
        """Query, key, value, query segments and key segments."""
        heads = zip(self._heads, (of_query.heads, of_key.heads, of_key.heads), strict=True)
        return [*heads, *zip(self._segments, (of_query.segments, of_key.segments), strict=True)]

    def call(
        self,
        kernel: Callable[..., None],
        operands: _Operands,
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        products: int,
        num_stages: int,
    ) -> list[Array]:
        """Runs a kernel of so many matrix products per block pair, a program for each block of its last range."""
        rows, query_slots, heads, width = self.query_shape.shape
        scores = rows * heads * query_slots * self.key_shape.shape[1]
        arrays = [array for array, _ in operands]
        compute = pl.pallas_call(
            functools.partial(kernel, size=self.size, width=width),
            out_shape=[shape for shape, _ in results],
            grid=(arrays[-1].shape[1], rows, heads),
            in_specs=[spec for _, spec in operands],
            out_specs=[spec for _, spec in results],
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=num_stages),
            cost_estimate=worst_case_cost(products, scores, width, [*arrays, *(shape for shape, _ in results)]),
            interpret=interpret_mode(),
            name=f"segment_attention{kernel.__name__.removesuffix('_kernel')}",
        )
        return compute(*arrays)
