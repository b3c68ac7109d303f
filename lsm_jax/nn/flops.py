"""FLOPs of a training step on real tokens: padding and pairs of different segments do not count.

An objective describes each transformer stack once, as an `AttentionShape`. The metric `useful_flops` follows from these
descriptions and from the kernels of the layers around the stacks. A multiply-add is two FLOPs, and a forward and
backward pass is three times the forward pass, or twice for a layer whose input needs no gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsm_jax.nn.sizes import StackSize
from lsm_jax.tokens.grid import TokenGrid


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys"],
    meta_fields=["size", "segments", "memory_width", "causal", "skips_blocks", "passes"],
)
@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """A stack of a step, and which of its tokens attend to which.

    Attributes:
      queries, keys: segment ids of the tokens of each row; 0 is padding.
      segments: the largest segment id, such as windows of a row.
      memory_width: width of the tokens attended to; None: the stack's own tokens.
      causal: a token attends to itself and those before it only.
      skips_blocks: `lsm plan` counts only the blocks that the implementation computes. False for texts, which are
        always computed in full, and for pools, whose few queries it counts as if they were.
      passes: 3 with the backward pass, 1 without.
    """

    queries: Int[Array, "r s"]
    keys: Int[Array, "r t"]
    size: StackSize
    segments: int
    memory_width: int | None = None
    causal: bool = False
    skips_blocks: bool = True
    passes: int = 3

    def flops(self) -> Float[Array, ""]:
        """FLOPs of the linear layers of real tokens, and of the attention of pairs within a segment."""
        width, memory_width = self.size.width, self.memory_width
        queries, keys = _counts(self.queries, self.segments), _counts(self.keys, self.segments)
        per_query = 8 * width**2 if memory_width is None else 4 * width**2  # query, key, value and output; or two
        per_key = 0 if memory_width is None else 4 * width * memory_width
        linear = (per_query + 4 * width * self.size.hidden) * queries.sum() + per_key * keys.sum()
        pairs = (queries * keys).sum() * (0.5 if self.causal else 1.0)
        return float(self.passes * self.size.depth) * (linear + 4.0 * width * pairs)


def _counts(segments: Int[Array, "r s"], number: int) -> Float[Array, "r w"]:
    """Tokens of each segment."""
    return jax.nn.one_hot(segments - 1, number, dtype=jnp.float32).sum(axis=1)


def useful_flops(
    shapes: Sequence[AttentionShape], layers: Mapping[str, Any], grid: TokenGrid
) -> Float[Array, ""] | float:
    """FLOPs of the stacks and of the layers around them; embedding lookups count as nothing.

    Args:
      shapes: the first is the encoder's and the last the decoder's.
      layers: parameters of `MaskedAutoencoder`, or their shapes; of SensorLM only its `encoder`.
    """
    visible, targets = (
        (segments > 0).sum().astype(jnp.float32) for segments in (shapes[0].queries, shapes[-1].queries)
    )
    total = sum(shape.flops() for shape in shapes)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(layers):
        names = [key.key for key in keys]
        if "stack" not in names:
            layer = names[-2] if names[-1] == "kernel" else names[-1]
            if layer == "cross_channel_proj":  # [channels, codes, width]: all channels for each target
                total += 2.0 * grid.groups * math.prod(leaf.shape[1:]) * targets * shapes[-1].passes
            elif layer == "channel_mix":  # [channels, channels, codes x width]: all channels, every minute
                total += 2.0 * grid.groups * leaf.shape[2] * targets * grid.patch_minutes * shapes[-1].passes
            elif names[-1] == "kernel":
                tokens = visible if layer in {"projection", "decoder_embed", "code_proj"} else targets
                minutes = grid.patch_minutes if layer == "expand" else 1
                # The patch embedding reads data, which need no gradient.
                passes = max(shapes[0].passes - 1, 1) if layer == "projection" else shapes[-1].passes
                total += 2.0 * math.prod(leaf.shape) * tokens * minutes * passes
    return total
