"""Attention of JAX and cuDNN, where it can express segments: for comparison with ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jaxtyping import Array, Float

from lsm_jax.errors import UserError
from lsm_jax.nn.attention.blocks import QUERY_PADDING, BlockRanges, BlockSizes, even_block, pad_to_blocks
from lsm_jax.nn.attention.flash import Inputs
from lsm_jax.nn.attention.platforms import interpret_mode

_LANES = 128


def cudnn(inputs: Inputs) -> Float[Array, "r s h d"]:
    """cuDNN's flash attention with a dense mask of segments, of which it computes every block.

    cuDNN has packed sequences too (16 bit, from SM90), but JAX offers them only in `jax._src.cudnn` (`q_offsets`,
    jax 0.10.2), not through a public function. Packed rows would be faster there than what is measured here.
    """
    query, key, value, query_segments, key_segments, _ = inputs
    if query.dtype == jnp.float32:
        raise UserError("model.attention='cudnn' computes 16-bit types only: set model.dtype=bfloat16.")
    seen = query_segments[:, :, None] == key_segments[:, None]
    out = jax.nn.dot_product_attention(query, key, value, mask=seen[:, None], implementation="cudnn")
    return jnp.where(seen.any(axis=2)[:, :, None, None], out, 0)  # without any key its output is undefined


def splash_block_sizes(query_slots: int, key_slots: int, head_size: int) -> BlockSizes:  # noqa: ARG001
    """Multiples of a TPU's 128 vector lanes."""
    return BlockSizes(even_block(query_slots, _LANES, 512), even_block(key_slots, _LANES, 512))


def splash(inputs: Inputs[BlockRanges]) -> Float[Array, "r s h d"]:
    """JAX's splash attention for TPUs, skipping the blocks outside the block ranges.

    The kernel is made from a mask known only at run time (`make_splash_mha` takes a JAX array), true in all of a block
    that is computed and false in all others. Segment ids mask within blocks.
    """
    query, key, value, query_segments, key_segments, block_mask = inputs
    size = block_mask.block_sizes
    kernel_sizes = splash_attention_kernel.BlockSizes(
        block_q=size.query, block_kv=size.key, block_q_dkv=size.query, block_kv_dkv=size.key, block_q_dq=size.query,
        block_kv_dq=size.key,
    )  # fmt: skip
    key_block = jnp.arange(block_mask.first_query_block.shape[1])
    first, count = block_mask.first_key_block[..., None], block_mask.num_key_blocks[..., None]
    computed = (key_block >= first) & (key_block < first + count)

    def attend(row: tuple[Array, Array, Array, Array, Array, Array]) -> Array:
        query, key, value, query_segments, key_segments, computed = row
        mask = jnp.repeat(jnp.repeat(computed, size.query, axis=0), size.key, axis=1)[None]  # for all heads
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            mask, block_sizes=kernel_sizes, interpret=bool(interpret_mode())
        )
        for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
            # No block is masked in part, so the dense mask need not be read. `is_dynamic_mask` is an array here, whose
            # truth value the kernel would ask for: impossible under `jit`.
            unmasked = {"mask_next": None, "partial_mask_blocks": None, "is_dynamic_mask": None}
            setattr(kernel, name, getattr(kernel, name)._replace(**unmasked))
        return kernel(query, key, value, splash_attention_kernel.SegmentIds(query_segments, key_segments))

    rows = (
        _to_lanes(query * query.shape[-1] ** -0.5, size.query),
        _to_lanes(key, size.key),
        _to_lanes(value, size.key),
        pad_to_blocks(query_segments, size.query, QUERY_PADDING),
        pad_to_blocks(key_segments, size.key),
        computed,
    )
    # Rows one after another, as each has a mask of its own.
    out = jax.lax.map(attend, rows).swapaxes(1, 2)[:, : query.shape[1], :, : query.shape[3]]
    has_key = (query_segments[:, :, None] == key_segments[:, None]).any(axis=2)
    return jnp.where(has_key[:, :, None, None], out, 0)


def _to_lanes(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h t e"]:
    """Tokens in whole blocks, the head size padded to whole lanes."""
    padded = jnp.pad(tokens, ((0, 0), (0, 0), (0, 0), (0, -tokens.shape[-1] % _LANES)))
    return pad_to_blocks(padded, block).swapaxes(1, 2)
