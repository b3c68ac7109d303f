"""Named model sizes.

`base` is the paper's 25M (SPEC section 3: ViT-S encoder, 4 decoder layers; the decoder's width of 256 is
one of the two readings). The others are ours: `tiny` and `small` for a laptop, `large` and `1b` for pods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lsm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class StackSize:
    """Depth, width, heads and hidden width of the feed-forward layer of a transformer stack."""

    depth: int
    width: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"model: width {self.width} is not a multiple of its {self.heads} heads.")


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Encoder and decoder of a masked autoencoder."""

    encoder: StackSize
    decoder: StackSize


SIZES: Mapping[str, ModelSize] = {
    "tiny": ModelSize(StackSize(4, 96, 4, 384), StackSize(2, 96, 4, 384)),
    "small": ModelSize(StackSize(6, 192, 6, 768), StackSize(2, 192, 6, 768)),
    "base": ModelSize(StackSize(12, 384, 6, 1536), StackSize(4, 256, 4, 1024)),
    "large": ModelSize(StackSize(24, 1024, 16, 4096), StackSize(8, 512, 8, 2048)),
    "1b": ModelSize(StackSize(24, 1792, 14, 7168), StackSize(8, 512, 8, 2048)),
}


def size(name: str) -> ModelSize:
    """The size of this name; UserError with the nearest names otherwise."""
    try:
        return SIZES[name]
    except KeyError:
        raise UserError(f"model.size={name!r} is unknown.{nearest(name, SIZES)} Known: {', '.join(SIZES)}.") from None
