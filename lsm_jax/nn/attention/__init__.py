"""Segment attention over packed rows: one function, several implementations."""

from lsm_jax.nn.attention.api import (
    AUTO,
    IMPLEMENTATIONS,
    attention,
    available_implementations,
    block_sparsity,
    create_block_mask,
    resolve_implementation,
)
from lsm_jax.nn.attention.blocks import BlockMask, BlockSparsity
from lsm_jax.nn.attention.platforms import interpret_kernels, platform

__all__ = [
    "AUTO",
    "IMPLEMENTATIONS",
    "BlockMask",
    "BlockSparsity",
    "attention",
    "available_implementations",
    "block_sparsity",
    "create_block_mask",
    "interpret_kernels",
    "platform",
    "resolve_implementation",
]
