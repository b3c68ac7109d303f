"""The implementations by name, where they run, and which one `auto` is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from jaxtyping import Array

from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.attention import blockwise, library, pallas_gpu, pallas_tpu
from lsm_jax.nn.attention.padding import free_of_padding
from lsm_jax.nn.attention.pieces import Pieces, cut
from lsm_jax.nn.attention.platforms import interpretation, platform
from lsm_jax.nn.attention.ranges import Blocks, Ranges, block_ranges
from lsm_jax.nn.attention.reference import reference

ANYWHERE = frozenset({"cpu", "gpu", "tpu"})
AUTO = "auto"
_BY_PLATFORM: Mapping[str, str] = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}
_DENSE_SCORES = 320 * 320  # of a head; up to here the overhead of blocks costs a CPU more than they save


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute segment attention.

    Attributes:
      compute: (query, key, value, query segments, key segments, ranges) -> attended values, zeros in padding,
        whatever stands there; the ranges are None where it has no blocks.
      blocks: (query slots, key slots, head size) -> its blocks, None where it takes rows whole.
      platforms: where it runs.
      products: of one that leaves out blocks beyond the ranges, matrix products of a pair of blocks by kernel;
        those in `BY_KEY` go by blocks of keys, the others by blocks of queries. Empty for one that skips nothing.
      ranges: (query segments, key segments, blocks) -> what it visits, where it has blocks.
    """

    compute: Callable[..., Array]
    blocks: Callable[[int, int, int], Blocks] | None = None
    platforms: frozenset[str] = ANYWHERE
    products: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ranges: Callable[[Array, Array, Blocks], Ranges | Pieces] = block_ranges


def _whole(
    query: Array, key: Array, value: Array, query_segments: Array, key_segments: Array, ranges: Ranges | Pieces | None
) -> Array:
    del ranges  # it looks at every key
    return reference(query, key, value, query_segments, key_segments)


BY_KEY = frozenset({"gradient", "key_gradient"})
_ONE_GRADIENT = {"forward": 2, "gradient": 5}
_TWO_GRADIENTS = {"forward": 2, "query_gradient": 3, "key_gradient": 4}

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "reference": Implementation(free_of_padding(_whole)),
    "blockwise": Implementation(blockwise.blockwise, blockwise.blocks, products=_ONE_GRADIENT, ranges=cut),
    "pallas_tpu": Implementation(pallas_tpu.pallas_tpu, pallas_tpu.blocks, frozenset({"tpu"}), _ONE_GRADIENT),
    "pallas_gpu": Implementation(pallas_gpu.pallas_gpu, pallas_gpu.blocks, pallas_gpu.PLATFORMS, _TWO_GRADIENTS),
    "cudnn": Implementation(free_of_padding(library.cudnn), platforms=frozenset({"gpu"})),
    "splash": Implementation(free_of_padding(library.splash), library.splash_blocks, frozenset({"tpu"})),
}


def resolved(name: str, query_slots: int, key_slots: int) -> str:
    """The implementation that `name` stands for on the platform at hand; UserError where there is no such."""
    here = platform()
    if name == AUTO:
        if here == "cpu" and query_slots * key_slots <= _DENSE_SCORES:
            return "reference"
        kernel = _BY_PLATFORM.get(here, "blockwise")
        return kernel if kernel in available() else "blockwise"
    if name not in IMPLEMENTATIONS:
        known = (AUTO, *IMPLEMENTATIONS)
        raise UserError(f"model.attention={name!r} is unknown.{nearest(name, known)} Known: {', '.join(known)}.")
    return name


def available() -> tuple[str, ...]:
    """The implementations that run on the platform at hand."""
    here = platform()
    return tuple(name for name, known in IMPLEMENTATIONS.items() if here in known.platforms)


def check_runs_here(name: str) -> None:
    """UserError where an implementation does not run on the platform at hand, unless it is to be interpreted."""
    if name not in available() and not interpretation():
        known = (AUTO, *available())
        raise UserError(f"model.attention={name!r} does not run on {platform()}. These do: {', '.join(known)}.")


def blocks_of(name: str, query_slots: int, key_slots: int, head_size: int) -> Blocks | None:
    """The blocks of an implementation for rows of these lengths; None where it takes them whole."""
    blocks = IMPLEMENTATIONS[resolved(name, query_slots, key_slots)].blocks
    return None if blocks is None else blocks(query_slots, key_slots, head_size)
