"""Named model sizes.

`base` is the paper's 25M (SPEC section 3: ViT-S encoder, 4 decoder layers; the decoder's width of 256 is
one of the two readings). The others are ours: `tiny` and `small` for a laptop, `large` and `1b` for pods.
SensorLM's `b` is the published table's (SPEC section 4); how deep its decoder is, and all other sizes, are our choice,
`xl` so as to come to the published 1.27B. Its `tiny` and `s` have encoders of LSM-2's `tiny` and `base`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from lsm_jax.errors import UserError, nearest

_Size = TypeVar("_Size")


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


@dataclasses.dataclass(frozen=True)
class LanguageSize:
    """Sensor encoder, text tower and multimodal decoder of SensorLM."""

    encoder: StackSize
    text: StackSize
    decoder: StackSize


LANGUAGE_SIZES: Mapping[str, LanguageSize] = {
    "tiny": LanguageSize(SIZES["tiny"].encoder, StackSize(3, 96, 4, 384), StackSize(3, 96, 4, 384)),
    "s": LanguageSize(SIZES["base"].encoder, StackSize(12, 384, 6, 1536), StackSize(6, 384, 6, 1536)),
    "b": LanguageSize(StackSize(12, 768, 12, 3072), StackSize(12, 768, 12, 3072), StackSize(6, 768, 12, 3072)),
    "l": LanguageSize(StackSize(24, 1024, 16, 4096), StackSize(12, 1024, 16, 4096), StackSize(12, 1024, 16, 4096)),
    "xl": LanguageSize(StackSize(24, 1536, 24, 6144), StackSize(24, 1024, 16, 4096), StackSize(11, 1024, 16, 4096)),
}


def size(name: str) -> ModelSize:
    """The size of this name; UserError with the nearest names otherwise."""
    return _named(name, SIZES)


def language_size(name: str) -> LanguageSize:
    """SensorLM's size of this name; UserError with the nearest names otherwise."""
    return _named(name, LANGUAGE_SIZES)


def _named(name: str, sizes: Mapping[str, _Size]) -> _Size:
    try:
        return sizes[name]
    except KeyError:
        raise UserError(f"model.size={name!r} is unknown.{nearest(name, sizes)} Known: {', '.join(sizes)}.") from None
