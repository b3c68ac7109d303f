"""`attention`: each query attends to the keys of its own segment. Nothing else here computes a softmax over keys."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.attention import blockwise, library, pallas_gpu, pallas_tpu
from lsm_jax.nn.attention.blocks import (
    BlockMask,
    BlockSizes,
    BlockSparsity,
    block_ranges,
    mark_padding,
    padded_length,
    segment_tiles,
    zero_padding,
)
from lsm_jax.nn.attention.flash import Inputs, zeroed
from lsm_jax.nn.attention.platforms import interpret_mode, platform
from lsm_jax.nn.attention.reference import reference
from lsm_jax.sharding import BATCH_AXES, HEAD_AXIS

AUTO = "auto"
CAUSAL = ("reference",)  # the implementations that can hide later keys
_ANYWHERE = frozenset({"cpu", "gpu", "rocm", "tpu"})
_KERNEL_OF_PLATFORM: Mapping[str, str] = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}
_MAX_DENSE_SCORES = 320 * 320  # per head; up to here blocks cost a CPU more than they save


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute segment attention.

    Attributes:
      compute: inputs -> output, zero in padding, whatever the inputs hold in padding.
      block_sizes: (query slots, key slots, head size) -> its block sizes; None if it has no blocks.
      platforms: where it runs.
      products: matrix products per block pair, by kernel. Kernels in `KEY_MAJOR_KERNELS` loop over blocks of keys,
        others over blocks of queries. Empty if XLA's own FLOP count is right.
      block_mask: (query segments, key segments, block sizes) -> its block mask.
    """

    compute: Callable[[Inputs], Array]
    block_sizes: Callable[[int, int, int], BlockSizes] | None = None
    platforms: frozenset[str] = _ANYWHERE
    products: Mapping[str, int] = dataclasses.field(default_factory=dict)
    block_mask: Callable[[Array, Array, BlockSizes], BlockMask] = block_ranges


def _without_padding(compute: Callable[[Inputs], Array]) -> Callable[[Inputs], Array]:
    """Puts zeros in padding before and after, so that padding reaches neither output nor gradient."""
    return lambda inputs: zero_padding(compute(zeroed(inputs)), inputs.query_segments)


KEY_MAJOR_KERNELS = frozenset({"backward", "backward_dkv"})
_FUSED_BACKWARD = {"forward": 2, "backward": 5}
_SPLIT_BACKWARD = {"forward": 2, "backward_dq": 3, "backward_dkv": 4}

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "reference": Implementation(_without_padding(reference)),
    "blockwise": Implementation(
        blockwise.blockwise, blockwise.block_sizes, products=_FUSED_BACKWARD, block_mask=segment_tiles
    ),
    "pallas_tpu": Implementation(pallas_tpu.pallas_tpu, pallas_tpu.block_sizes, frozenset({"tpu"}), _FUSED_BACKWARD),
    "pallas_gpu": Implementation(pallas_gpu.pallas_gpu, pallas_gpu.block_sizes, pallas_gpu.PLATFORMS, _SPLIT_BACKWARD),
    "cudnn": Implementation(_without_padding(library.cudnn), platforms=frozenset({"gpu"})),
    "splash": Implementation(_without_padding(library.splash), library.splash_block_sizes, frozenset({"tpu"})),
}


def attention(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    implementation: str = AUTO,
    block_mask: BlockMask | None = None,
    causal: bool = False,
) -> Float[Array, "r s h d"]:
    """Segment attention over rows.

    On a mesh entered with `jax.sharding.use_abstract_mesh`, every device computes its own rows and heads.

    Args:
      query, key, value: heads of R rows. The numbers of queries and keys may differ (cross-attention).
      query_segments, key_segments: contiguous segments numbered from 1; 0 is padding, whose heads are never read.
      implementation: a name in `IMPLEMENTATIONS`, all tested against `reference`, or `auto`.
      block_mask: from `create_block_mask` for these segments, to share it among layers.
      causal: for self-attention; no query sees a later key.

    Returns:
      Weighted sums of values; zeros for padding and for queries whose segment has no key.

    Raises:
      UserError: unknown implementation, or one that does not run here or cannot be causal.
    """
    name = resolve_implementation(implementation, query.shape[1], key.shape[1])
    if causal and name not in CAUSAL:
        raise UserError(f"the attention {name!r} cannot be causal; these can: {', '.join(CAUSAL)}.")
    _check_runs_here(name)
    if block_mask is None:
        block_mask = create_block_mask(query_segments, key_segments, query.shape[3], name)
    compute = IMPLEMENTATIONS[name].compute
    if causal:
        compute = _without_padding(functools.partial(reference, causal=True))

    def attend(query: Array, key: Array, value: Array, *segments_and_mask: Any) -> Array:
        *segments, block_mask = segments_and_mask
        return compute(Inputs(query, key, value, *mark_padding(*segments), block_mask))

    operands = query, key, value, query_segments, key_segments, block_mask
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or AxisType.Manual in mesh.axis_types:
        return attend(*operands)
    rows = _row_axes(mesh, query.shape[0])
    heads = HEAD_AXIS if query.shape[2] % mesh.shape.get(HEAD_AXIS, query.shape[2] + 1) == 0 else None
    by_head, by_row = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    specs = by_head, by_head, by_head, by_row, by_row, by_row
    return jax.shard_map(attend, in_specs=specs, out_specs=by_head, check_vma=False)(*operands)


def create_block_mask(
    query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], head_size: int, implementation: str = AUTO
) -> BlockMask | None:
    """The block pairs that an implementation computes for these segments, to be shared by all layers of a stack.

    None for an implementation without blocks.
    """
    slots = query_segments.shape[1], key_segments.shape[1]
    chosen = IMPLEMENTATIONS[resolve_implementation(implementation, *slots)]
    if chosen.block_sizes is None:
        return None
    return chosen.block_mask(query_segments, key_segments, chosen.block_sizes(*slots, head_size))


def block_sparsity(
    implementation: str, query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"], head_size: int
) -> BlockSparsity | None:
    """What an implementation computes for these segments; None if it skips nothing or XLA counts it."""
    slots = query_segments.shape[1], key_segments.shape[1]
    chosen = IMPLEMENTATIONS[resolve_implementation(implementation, *slots)]
    if chosen.block_sizes is None or not chosen.products:
        return None
    sizes = chosen.block_sizes(*slots, head_size)
    padded = padded_length(slots[0], sizes.query), padded_length(slots[1], sizes.key)
    block_mask = chosen.block_mask(query_segments, key_segments, sizes)
    return BlockSparsity(padded, *block_mask.computed_fractions, chosen.products)


def resolve_implementation(name: str, query_slots: int, key_slots: int) -> str:
    """The implementation that `name` (or `auto`) stands for on the current platform; UserError if it is unknown."""
    here = platform()
    if name == AUTO:
        if here == "cpu" and query_slots * key_slots <= _MAX_DENSE_SCORES:
            return "reference"
        kernel = _KERNEL_OF_PLATFORM.get(here, "blockwise")
        return kernel if kernel in available_implementations() else "blockwise"
    if name not in IMPLEMENTATIONS:
        names = (AUTO, *IMPLEMENTATIONS)
        raise UserError(f"model.attention={name!r} is unknown.{nearest(name, names)} Known: {', '.join(names)}.")
    return name


def available_implementations() -> tuple[str, ...]:
    """The implementations that run on the current platform."""
    here = platform()
    return tuple(name for name, implementation in IMPLEMENTATIONS.items() if here in implementation.platforms)


def _check_runs_here(name: str) -> None:
    """UserError if an implementation does not run on the current platform and kernels are not interpreted."""
    if name not in available_implementations() and not interpret_mode():
        names = (AUTO, *available_implementations())
        raise UserError(f"model.attention={name!r} does not run on {platform()}. These do: {', '.join(names)}.")


def _row_axes(mesh: jax.sharding.AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The mesh axes that rows are spread over: as many as divide them."""
    present = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    for axes in (present, present[:1], present[1:]):
        if axes and rows % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return None
