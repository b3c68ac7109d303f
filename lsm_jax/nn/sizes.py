"""Model sizes, by name or in numbers.

LSM: `base` is the paper's 25M (arXiv 2506.05321: ViT-S encoder, 4 decoder layers; a decoder width of 256 is one of two
readings). The others are ours: `tiny` and `small` for a laptop, `large` and `1b` for pods.
LSM-1 (arXiv 2410.13638) publishes parameter counts; `lsm1-*` are the ViTs with an MAE decoder that have them.
SensorLM: `b` is from the paper's table (arXiv 2506.09108). The depth of its decoder and all other sizes are ours; `xl`
has the published 1.27B parameters. The encoders of `tiny` and `s` are those of LSM's `tiny` and `base`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from lsm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class StackSize:
    """Depth, width, heads and feed-forward width (`hidden`) of a transformer stack."""

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


@dataclasses.dataclass(frozen=True)
class LanguageSize:
    """Sensor encoder, text tower and multimodal decoder of SensorLM."""

    encoder: StackSize
    text: StackSize
    decoder: StackSize


SIZES: Mapping[str, str] = {
    "tiny": "4x96x4x384+2x96x4x384",
    "small": "6x192x6x768+2x192x6x768",
    "base": "12x384x6x1536+4x256x4x1024",
    "large": "24x1024x16x4096+8x512x8x2048",
    "1b": "24x1792x14x7168+8x512x8x2048",
    "lsm1-2m": "4x192x3x768+2x128x4x512",
    "lsm1-7m": "12x192x3x768+4x192x3x768",
    "lsm1-110m": "12x768x12x3072+8x512x16x2048",
    "lsm1-328m": "24x1024x16x4096+8x512x16x2048",
}
LANGUAGE_SIZES: Mapping[str, str] = {
    "tiny": "4x96x4x384+3x96x4x384+3x96x4x384",
    "s": "12x384x6x1536+12x384x6x1536+6x384x6x1536",
    "b": "12x768x12x3072+12x768x12x3072+6x768x12x3072",
    "l": "24x1024x16x4096+12x1024x16x4096+12x1024x16x4096",
    "xl": "24x1536x24x6144+24x1024x16x4096+11x1024x16x4096",
}


def model_size(text: str) -> ModelSize:
    """The size with this name, or of numbers such as `12x384x6x1536+4x256x4x1024` (encoder + decoder).

    Raises:
      UserError: neither.
    """
    return ModelSize(*_stacks(text, SIZES, "encoder + decoder"))


def language_size(text: str) -> LanguageSize:
    """As `model_size`, of encoder + text tower + decoder."""
    return LanguageSize(*_stacks(text, LANGUAGE_SIZES, "encoder + text tower + decoder"))


def _stacks(text: str, names: Mapping[str, str], parts: str) -> list[StackSize]:
    stack, count = r"[1-9]\d*(x[1-9]\d*){3}", len(parts.split(" + "))
    numbers = names.get(text, text)
    if not re.fullmatch(rf"{stack}(\+{stack}){{{count - 1}}}", numbers):
        raise UserError(
            f"model.size={text!r} is unknown.{nearest(text, names)} Known: {', '.join(names)}, or depth x width x "
            f"heads x hidden of {parts}, such as {next(iter(names.values()))}."
        )
    return [StackSize(*map(int, part.split("x"))) for part in numbers.split("+")]
