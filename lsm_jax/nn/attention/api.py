"""`attention`: a query sees the keys of its own segment. Nothing else computes a softmax over keys."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from lsm_jax.errors import UserError
from lsm_jax.nn.attention.padding import free_of_padding
from lsm_jax.nn.attention.pieces import Pieces
from lsm_jax.nn.attention.ranges import Ranges
from lsm_jax.nn.attention.reference import reference
from lsm_jax.nn.attention.registry import AUTO, IMPLEMENTATIONS, blocks_of, check_runs_here, resolved
from lsm_jax.sharding import BATCH_AXES, HEAD_AXIS

CAUSAL = ("reference",)  # the implementations that can hide later keys


def attention(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    implementation: str = AUTO,
    ranges: Ranges | Pieces | None = None,
    causal: bool = False,
) -> Float[Array, "r s h d"]:
    """Segment attention over rows.

    On a mesh that has been entered (`jax.sharding.use_abstract_mesh`) every device attends for its own rows and heads.

    Args:
      query, key, value: heads of R rows; queries and keys may differ in number (cross-attention).
      query_segments, key_segments: contiguous segments, 0 is padding. What heads hold in padding is never looked at.
      implementation: a name in `IMPLEMENTATIONS`, all held to `reference`, or `auto`.
      ranges: of `attention_ranges` for these segments, where they are shared by several layers.
      causal: of a row's attention to itself: no query sees a key that stands after it.

    Returns:
      Weighted values, zeros for padding and for a query whose segment has no key.

    Raises:
      UserError: unknown implementation, or one that does not run here or cannot be causal.
    """
    name = resolved(implementation, query.shape[1], key.shape[1])
    if causal and name not in CAUSAL:
        raise UserError(f"the attention {name!r} cannot be causal; these can: {', '.join(CAUSAL)}.")
    check_runs_here(name)
    if ranges is None:
        ranges = attention_ranges(query_segments, key_segments, query.shape[3], name)

    def attend(
        query: Float[Array, "r s h d"],
        key: Float[Array, "r t h d"],
        value: Float[Array, "r t h d"],
        asking: Int[Array, "r s"],
        known: Int[Array, "r t"],
        ranges: Ranges | Pieces | None,
    ) -> Float[Array, "r s h d"]:
        if causal:
            ordered = free_of_padding(functools.partial(reference, causal=True))
            return ordered(query, key, value, asking, known)
        asking, known = jnp.where(asking > 0, asking, -1), jnp.maximum(known, 0)
        return IMPLEMENTATIONS[name].compute(query, key, value, asking, known, ranges)

    operands = query, key, value, query_segments, key_segments, ranges
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or AxisType.Manual in mesh.axis_types:
        return attend(*operands)
    rows = _row_axes(mesh, query.shape[0])
    heads = HEAD_AXIS if query.shape[2] % mesh.shape.get(HEAD_AXIS, query.shape[2] + 1) == 0 else None
    by_head, by_row = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    specs = by_head, by_head, by_head, by_row, by_row, by_row
    return jax.shard_map(attend, in_specs=specs, out_specs=by_head, check_vma=False)(*operands)


def attention_ranges(
    query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], head_size: int, implementation: str = AUTO
) -> Ranges | Pieces | None:
    """What an implementation can know before it meets any heads: made once, given to every layer.

    Returns:
      None for an implementation without blocks.
    """
    blocks = blocks_of(implementation, query_segments.shape[1], key_segments.shape[1], head_size)
    if blocks is None:
        return None
    name = resolved(implementation, query_segments.shape[1], key_segments.shape[1])
    return IMPLEMENTATIONS[name].ranges(query_segments, key_segments, blocks)


def _row_axes(mesh: jax.sharding.AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The axes that rows are spread over: as many as divide them."""
    present = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    for axes in (present, present[:1], present[1:]):
        if axes and rows % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return None
