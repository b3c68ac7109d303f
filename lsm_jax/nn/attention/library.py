"""Attention of JAX's own, by name, where it can express segments: what ours must be worth beside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.errors import UserError
from lsm_jax.nn.attention.platforms import interpretation
from lsm_jax.nn.attention.ranges import Blocks, Ranges, even_block, pad_slots

_LANES = 128


def cudnn(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    ranges: Ranges | None,  # noqa: ARG001
) -> Float[Array, "r s h d"]:
    """cuDNN's flash attention. It is told of segments by a mask of all pairs, which it computes all of."""
    if query.dtype == jnp.float32:
        raise UserError("model.attention='cudnn' computes 16-bit types only: set model.dtype=bfloat16.")
    seen = query_segments[:, :, None] == key_segments[:, None]
    # In rows without any key it may put anything.
    out = jax.nn.dot_product_attention(query, key, value, mask=seen[:, None], implementation="cudnn")
    return jnp.where(seen.any(axis=2)[:, :, None, None], out, 0)


def splash_blocks(query_slots: int, key_slots: int, head_size: int) -> Blocks:  # noqa: ARG001
    """Blocks of whole lanes."""
    return Blocks(even_block(query_slots, _LANES, 512), even_block(key_slots, _LANES, 512))


def splash(
    query: Float[Array, "r s h d"],
    key: Float[Array, "r t h d"],
    value: Float[Array, "r t h d"],
    query_segments: Int[Array, "r s"],
    key_segments: Int[Array, "r t"],
    ranges: Ranges,
) -> Float[Array, "r s h d"]:
    """JAX's splash attention for TPUs. Its masks are static: segments are masked in every block, none is skipped."""
    size = ranges.blocks
    heads = _lanes(query * query.shape[-1] ** -0.5, size.query), _lanes(key, size.key), _lanes(value, size.key)
    segments = splash_attention_kernel.SegmentIds(
        pad_slots(query_segments, size.query, -1), pad_slots(key_segments, size.key)
    )
    everything = splash_attention_mask.FullMask((heads[0].shape[2], heads[1].shape[2]))
    compute = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([everything] * query.shape[2]),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=size.query, block_kv=size.key, block_q_dkv=size.query, block_kv_dkv=size.key,
            block_q_dq=size.query, block_kv_dq=size.key,
        ),
        interpret=bool(interpretation()),
    )  # fmt: skip
    out = jax.vmap(compute)(*heads, segments).swapaxes(1, 2)[:, : query.shape[1], :, : query.shape[3]]
    return jnp.where(_has_key(query_segments, key_segments)[:, :, None, None], out, 0)


def _has_key(query_segments: Int[Array, "r s"], key_segments: Int[Array, "r t"]) -> Bool[Array, "r s"]:
    return (query_segments[:, :, None] == key_segments[:, None]).any(axis=2)


def _lanes(tokens: Float[Array, "r s h d"], block: int) -> Float[Array, "r h t e"]:
    """Whole blocks, with heads as wide as whole lanes."""
    wide = jnp.pad(tokens, ((0, 0), (0, 0), (0, 0), (0, -tokens.shape[-1] % _LANES)))
    return pad_slots(wide, block).swapaxes(1, 2)
