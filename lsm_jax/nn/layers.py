"""Transformer layers over rows, stacked and scanned.

Blocks of a stack share one leading parameter axis, so that compile time does not grow with depth and a
checkpoint has one array per kind of parameter. Rematerialisation is a named policy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.attention import BlockMask, attention, create_block_mask, platform
from lsm_jax.nn.sizes import StackSize

REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_KERNEL = nnx.initializers.xavier_uniform()
# A scan copies what the backward pass needs into and out of stacked arrays: a quarter of a small model's step on a CPU,
# a sixth of `base`'s on an H100. So stacks are unrolled up to so many layers, as far as compiling them stays cheap, and
# so many bytes of tokens: unrolled layers have temporaries of their own, and on a CPU memory that is touched for the
# first time costs more than those copies where it is much (`base`'s decoder).
_UNROLLED = {"cpu": (4, 8 * 2**20), "gpu": (24, math.inf)}


def scan_blocks(step: Callable[..., Any], carry: Any, layers: Any, depth: int, remat: str) -> tuple[Any, Any]:
    """`jax.lax.scan` over the layers of a stack under a policy of `REMAT_POLICIES`, unrolled where that is faster.

    Never under a policy that saves memory: within a scan nothing can be kept that was to be made again.
    """
    layers_at_most, bytes_at_most = _UNROLLED.get(platform(), (1, math.inf))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    unroll = remat == "none" and depth <= layers_at_most and size <= bytes_at_most
    return jax.lax.scan(rematerialised(step, remat, prevent_cse=False), carry, layers, unroll=unroll)


def rematerialised(step: Callable[..., Any], remat: str, prevent_cse: bool = True) -> Callable[..., Any]:
    """A layer under a policy of `REMAT_POLICIES`.

    Args:
      prevent_cse: as `jax.checkpoint` has it; not needed within a scan, and costs there.

    Raises:
      UserError: there is no such policy.
    """
    if remat not in REMAT_POLICIES:
        raise UserError(f"model.remat={remat!r} is unknown.{nearest(remat, REMAT_POLICIES)}")
    policy = REMAT_POLICIES[remat]
    return step if policy is None else jax.checkpoint(step, policy=policy, prevent_cse=prevent_cse)


def made_again(layer: Callable[[Float[Array, "*b d"]], Float[Array, "*b e"]], tokens: Float[Array, "*b d"]) -> Any:
    """What a layer makes of tokens, of which the backward pass keeps the tokens alone.

    For layers that cost little beside a matrix product, and would have a scan stack several arrays of their size. The
    backward pass of a product needs what went into it, not the product, so no matrix product is made again. Where a
    stack is unrolled, XLA may keep it after all.
    """
    return jax.checkpoint(lambda tokens: layer(tokens), prevent_cse=False)(tokens)


class Asked(NamedTuple):
    """The tokens of a row whose outputs are wanted.

    Attributes:
      slots: where they stand in the row; those of padding may lie past its end.
      segments: theirs, 0 is padding.
    """

    slots: Int[Array, "r q"]
    segments: Int[Array, "r q"]

    def of(self, tokens: Shaped[Array, "r s *d"]) -> Shaped[Array, "r q *d"]:
        """These of a row's tokens."""
        slots = self.slots.reshape(*self.slots.shape, *(1,) * (tokens.ndim - 2))
        return jnp.take_along_axis(tokens, slots, axis=1, mode="clip")


class Attention(nnx.Module):
    """Multi-head attention of rows on themselves or on other rows, through the one function."""

    def __init__(
        self,
        size: StackSize,
        memory_width: int | None,
        *,
        implementation: str,
        causal: bool = False,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        head = size.width // size.heads
        linear = functools.partial(nnx.LinearGeneral, dtype=dtype, kernel_init=_KERNEL, rngs=rngs)
        if memory_width is None:
            self.query_key_value = linear(size.width, (3, size.heads, head))
        else:
            self.query = linear(size.width, (size.heads, head))
            self.key_value = linear(memory_width, (2, size.heads, head))
        self.output = linear((size.heads, head), size.width, axis=(-2, -1))
        self.implementation, self.causal = implementation, causal

    def __call__(
        self,
        tokens: Float[Array, "r s d"],
        segments: Int[Array, "r s"],
        memory: tuple[Float[Array, "r t m"], Int[Array, "r t"]] | None,
        block_mask: BlockMask | None,
        asked: Asked | None = None,
    ) -> Float[Array, "r s d"]:
        """Attends to `memory` (tokens, segments) where given, else to the row itself; of it only what is `asked`."""
        if memory is None:
            query, key, value = _each(self.query_key_value, tokens)
            key_segments = segments
        else:
            query = self.query(tokens)
            key, value = _each(self.key_value, memory[0])
            key_segments = memory[1]
        if asked is not None:
            query, segments = asked.of(query), asked.segments
        attended = attention(query, key, value, segments, key_segments, self.implementation, block_mask, self.causal)
        return self.output(attended)


def _each(layer: nnx.LinearGeneral, tokens: Float[Array, "r s d"]) -> list[Float[Array, "r s h k"]]:
    """What a layer of several outputs makes of tokens, output by output.

    One product of all of them would be cut apart for attention and its gradients put together again, every time a copy.
    """
    assert layer.bias is not None
    kernel, bias, tokens = (jnp.asarray(each, layer.dtype) for each in (layer.kernel[...], layer.bias[...], tokens))
    return [jnp.einsum("rsd,dhk->rshk", tokens, kernel[:, part]) + bias[part] for part in range(kernel.shape[1])]


class FeedForward(nnx.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.expand = nnx.Linear(width, hidden, dtype=dtype, kernel_init=_KERNEL, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, kernel_init=_KERNEL, rngs=rngs)

    def __call__(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return made_again(lambda hidden: self.contract(nnx.gelu(hidden)), self.expand(tokens))


class Block(nnx.Module):
    """Pre-norm block: attention (to the row, or to `memory`), then feed-forward."""

    def __init__(
        self, size: StackSize, memory_width: int | None, *, implementation: str, dtype: str, rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(size, memory_width, implementation=implementation, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(size.width, size.hidden, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "r s d"],
        segments: Int[Array, "r s"],
        memory: tuple[Float[Array, "r t m"], Int[Array, "r t"]] | None,
        block_mask: BlockMask | None,
        asked: Asked | None = None,
    ) -> Float[Array, "r s d"]:
        attended = self.attention(made_again(self.attention_norm, tokens), segments, memory, block_mask, asked)
        tokens = attended + (tokens if asked is None else asked.of(tokens))
        return tokens + self.feed_forward(made_again(self.feed_forward_norm, tokens))


class Stack(nnx.Module):
    """`size.depth` blocks, scanned, and a final norm.

    Args:
      memory_width: None for self-attention; else the width of the tokens attended to.
      remat: a name in `REMAT_POLICIES`.
    """

    def __init__(
        self,
        size: StackSize,
        *,
        memory_width: int | None = None,
        implementation: str,
        remat: str,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        if remat not in REMAT_POLICIES:
            raise UserError(f"model.remat={remat!r} is unknown.{nearest(remat, REMAT_POLICIES)}")

        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> Block:
            return Block(size, memory_width, implementation=implementation, dtype=dtype, rngs=rngs)

        self.blocks = make(rngs)
        self.norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.depth, self.remat = size.depth, remat
        self.head_size = size.width // size.heads
        self.implementation = implementation

    def __call__(
        self,
        tokens: Float[Array, "r s d"],
        segments: Int[Array, "r s"],
        memory: tuple[Float[Array, "r t m"], Int[Array, "r t"]] | None = None,
        asked: Asked | None = None,
    ) -> Float[Array, "r s d"] | Float[Array, "r q d"]:
        """The tokens after all blocks; where only some are `asked` for, the last block computes no others."""
        graph, parameters = nnx.split(self.blocks)
        key_segments = segments if memory is None else memory[1]

        def step(asked: Asked | None) -> Callable[..., Any]:
            asking = segments if asked is None else asked.segments
            block_mask = create_block_mask(asking, key_segments, self.head_size, self.implementation)
            return lambda carry, layer: (nnx.merge(graph, layer)(carry, segments, memory, block_mask, asked), None)

        whole = self.depth if asked is None else self.depth - 1
        layers = jax.tree.map(lambda stacked: stacked[:whole], parameters)
        tokens, _ = scan_blocks(step(None), tokens, layers, whole, self.remat)
        if asked is not None:
            last = jax.tree.map(lambda stacked: stacked[-1], parameters)
            tokens, _ = rematerialised(step(asked), self.remat)(tokens, last)
        return self.norm(tokens)
