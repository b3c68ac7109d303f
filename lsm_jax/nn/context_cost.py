"""What the context and minute paths cost, counted from the shapes of their parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from lsm_jax.tokens.grid import TokenGrid

_PARTS = ("context", "context_query", "prediction")
_PER_MINUTE = ("anchors", "expand")  # layers of the minute path that meet every minute of a token
_OF_DATA = ("near", "beside", "across", "anchors")  # nothing is learnt before them: no gradient of their input


def context_flops(
    decoder: Mapping[str, Any], grid: TokenGrid, visible: Float[Array, ""], targets: Float[Array, ""]
) -> Float[Array, ""] | float:
    """Forward and backward FLOPs of the paths' matrices; looking up tables by channel or place counts for nothing.

    Args:
      decoder: the decoder's parameters or their shapes.
      visible, targets: tokens the paths read and predict.
    """
    total: Float[Array, ""] | float = 0.0
    for keys, leaf in jax.tree_util.tree_leaves_with_path({part: decoder[part] for part in _PARTS if part in decoder}):
        names = [key.key for key in keys]
        layer = names[-2] if names[-1] == "kernel" else names[-1]
        if names[-1] == "kernel":
            times = targets * (grid.patch_minutes if layer in _PER_MINUTE else 1)
            total += 2.0 * math.prod(leaf.shape) * times * (2 if layer in _OF_DATA else 3)
        elif layer == "beside":  # [rows, cells, width]: every visible patch once
            total += 2.0 * math.prod(leaf.shape[1:]) * visible * 2
        elif layer == "across":  # [rows, rows, value and mask x width]: every channel at every minute of a target
            total += 2.0 * grid.groups * leaf.shape[2] * targets * grid.patch_minutes * 2
    return total
