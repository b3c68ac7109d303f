"""Transformer layers over rows, stacked and scanned.

The parameters of a stack's blocks are stacked along a leading axis: compile time does not grow with depth, and a
checkpoint has one array per kind of parameter.
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

from lsm_jax.nn.attention import BlockMask, attention, create_block_mask, platform
from lsm_jax.nn.positions import Rotation, rotated
from lsm_jax.nn.sizes import StackSize

REMAT_POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_ENTROPY_QUERIES = 128  # a sample is enough; all scores of a long row would not fit in memory
_KERNEL = nnx.initializers.xavier_uniform()
# (layers, bytes of the carry) up to which a stack is unrolled, by platform. A scan copies what the backward pass needs
# into and out of stacked arrays: a quarter of a small model's step on a CPU, a sixth of `base`'s on an H100. Unrolled
# layers compile more slowly and need temporaries of their own, which on a CPU cost more than the copies for large rows.
SCAN_UNROLL_LIMITS = {"cpu": (4, 8 * 2**20), "gpu": (24, math.inf)}


def scan_blocks(step: Callable[..., Any], carry: Any, layers: Any, depth: int, remat: str) -> tuple[Any, Any]:
    """`jax.lax.scan` over the layers of a stack under a policy of `REMAT_POLICIES`, unrolled where that is faster.

    Not unrolled under a policy that saves memory: XLA might keep what should be recomputed.
    """
    max_layers, max_bytes = SCAN_UNROLL_LIMITS.get(platform(), (1, math.inf))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    known = isinstance(size, int)  # an export leaves batch and length free
    unroll = remat == "none" and depth <= max_layers and known and size <= max_bytes
    return jax.lax.scan(rematerialised(step, remat, prevent_cse=False), carry, layers, unroll=unroll)


def rematerialised(step: Callable[..., Any], remat: str, prevent_cse: bool = True) -> Callable[..., Any]:
    """A layer under a policy of `REMAT_POLICIES`.

    Args:
      prevent_cse: as in `jax.checkpoint`; not needed within a scan, and slower there.
    """
    policy = REMAT_POLICIES[remat]
    return step if policy is None else jax.checkpoint(step, policy=policy, prevent_cse=prevent_cse)


def remat_elementwise(
    layer: Callable[[Float[Array, "*b d"]], Float[Array, "*b e"]], tokens: Float[Array, "*b d"]
) -> Any:
    """Applies a layer and recomputes it in the backward pass, which stores only its input.

    For norms and activations, which are cheap and would otherwise store several arrays. A matrix product at the end of
    the layer is not recomputed, because its gradient needs only its inputs. In unrolled stacks XLA may store them
    anyway.
    """
    return jax.checkpoint(lambda tokens: layer(tokens), prevent_cse=False)(tokens)


Rotations = tuple[Rotation, Rotation]  # of queries and keys


class OutputTokens(NamedTuple):
    """The tokens of a row at which a stack's output is needed.

    Attributes:
      indices: their slots in the row; padding may point past its end.
      segment_ids: their segments; 0 is padding.
    """

    indices: Int[Array, "r q"]
    segment_ids: Int[Array, "r q"]

    def take(self, tokens: Shaped[Array, "r s *d"]) -> Shaped[Array, "r q *d"]:
        """Gathers these tokens of a row."""
        indices = self.indices.reshape(*self.indices.shape, *(1,) * (tokens.ndim - 2))
        return jnp.take_along_axis(tokens, indices, axis=1, mode="clip")


class Attention(nnx.Module):
    """Multi-head self-attention of rows, or cross-attention to other rows (`memory_width`)."""

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
        outputs: OutputTokens | None = None,
        rotations: Rotations | None = None,
    ) -> Float[Array, "r s d"]:
        """Attends to `memory` (tokens, segments) if given, else to the row itself.

        Args:
          rotations: of queries and keys.
          outputs: the queries to compute; None: all tokens.
        """
        if memory is None:
            query, key, value = _separate_outputs(self.query_key_value, tokens)
            key_segments = segments
        else:
            query = self.query(tokens)
            key, value = _separate_outputs(self.key_value, memory[0])
            key_segments = memory[1]
        query, key = _rotated(query, key, rotations)
        if outputs is not None:
            query, segments = outputs.take(query), outputs.segment_ids
        attended = attention(query, key, value, segments, key_segments, self.implementation, block_mask, self.causal)
        return self.output(attended)

    def entropy(
        self, tokens: Float[Array, "r s d"], segments: Int[Array, "r s"], rotations: Rotations | None = None
    ) -> Float[Array, ""]:
        """Mean entropy of the attention weights over the first queries of the first row, relative to its maximum.

        1 is uniform attention, 0 attention to one token.
        """
        query, key, _ = _separate_outputs(self.query_key_value, tokens[:1])
        query, key = _rotated(query, key, jax.tree.map(lambda part: part[:1], rotations))
        query, own = query[:, :_ENTROPY_QUERIES].astype(jnp.float32), segments[:1, :_ENTROPY_QUERIES]
        scores = jnp.einsum("rqhk,rshk->rhqs", query, key.astype(jnp.float32)) * query.shape[-1] ** -0.5
        allowed = ((own[:, :, None] == segments[:1, None, :]) & (own[:, :, None] > 0))[:, None]
        weights = jnp.where(allowed, jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1), 0)
        keys = allowed.sum(axis=-1)
        entropy = -jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1)), 0).sum(axis=-1)
        counted = jnp.broadcast_to(keys > 1, entropy.shape)
        relative = jnp.where(counted, entropy / jnp.log(jnp.maximum(keys, 2)), 0)
        return relative.sum() / jnp.maximum(counted.sum(), 1)


def _rotated(
    query: Float[Array, "r q h k"], key: Float[Array, "r s h k"], rotations: Rotations | None
) -> tuple[Float[Array, "r q h k"], Float[Array, "r s h k"]]:
    if rotations is None:
        return query, key
    return rotated(query, rotations[0]), rotated(key, rotations[1])


def _separate_outputs(layer: nnx.LinearGeneral, tokens: Float[Array, "r s d"]) -> list[Float[Array, "r s h k"]]:
    """The outputs of a fused layer (query, key and value; or key and value), each as a product of its own.

    Splitting one fused product, and joining its gradients, would copy them every time. The bias of the keys is left
    out: it adds the same to all scores of a query, which a softmax does not see. Its gradient would be rounding errors
    alone, which Adam scales up to whole steps, so that it would differ from mesh to mesh.
    """
    assert layer.bias is not None
    kernel, bias, tokens = (jnp.asarray(each, layer.dtype) for each in (layer.kernel[...], layer.bias[...], tokens))
    parts = kernel.shape[1]
    outputs = [jnp.einsum("rsd,dhk->rshk", tokens, kernel[:, part]) for part in range(parts)]
    return [output if part == parts - 2 else output + bias[part] for part, output in enumerate(outputs)]


class Centering(nnx.Module):
    """Subtracts a learned mean of all tokens.

    With a high learning rate all tokens drift together in one direction, which a norm then lets dominate: tokens of
    different days become nearly equal, and whatever reads them learns slowly. The mean is not learnt from the loss: its
    gradient is its distance to the tokens, so that it follows them.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.center = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,)))

    def __call__(self, tokens: Float[Array, "r s d"]) -> Float[Array, "r s d"]:
        return _centred(tokens, self.center[...])


# Adam does not depend on the scale of a gradient, but clipping by the global norm does: this one must not count there.
_CENTER_GRADIENT = 1e-3


@jax.custom_vjp
def _centred(tokens: Float[Array, "r s d"], center: Float[Array, " d"]) -> Float[Array, "r s d"]:
    return tokens - center.astype(tokens.dtype)


def _centred_forward(
    tokens: Float[Array, "r s d"], center: Float[Array, " d"]
) -> tuple[Float[Array, "r s d"], tuple[Float[Array, "r s d"], Float[Array, " d"]]]:
    return _centred(tokens, center), (tokens, center)


def _centred_backward(
    saved: tuple[Float[Array, "r s d"], Float[Array, " d"]], gradient: Float[Array, "r s d"]
) -> tuple[Float[Array, "r s d"], Float[Array, " d"]]:
    """Weighs each token by the norm of its gradient.

    Padding then has no weight, and micro-batches add up to the whole batch, whatever the loss is a mean over.
    """
    tokens, center = saved
    weight = jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1)
    distance = center * weight.sum() - jnp.einsum("rs,rsd->d", weight, tokens.astype(jnp.float32))
    return gradient, _CENTER_GRADIENT * distance


_centred.defvjp(_centred_forward, _centred_backward)


class FeedForward(nnx.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.expand = nnx.Linear(width, hidden, dtype=dtype, kernel_init=_KERNEL, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, kernel_init=_KERNEL, rngs=rngs)

    def __call__(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return remat_elementwise(lambda hidden: self.contract(nnx.gelu(hidden)), self.expand(tokens))


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
        outputs: OutputTokens | None = None,
        rotations: Rotations | None = None,
    ) -> Float[Array, "r s d"]:
        normed = remat_elementwise(self.attention_norm, tokens)
        attended = self.attention(normed, segments, memory, block_mask, outputs, rotations)
        tokens = attended + (tokens if outputs is None else outputs.take(tokens))
        return tokens + self.feed_forward(remat_elementwise(self.feed_forward_norm, tokens))


class Stack(nnx.Module):
    """`size.depth` blocks, scanned, and a final norm.

    Args:
      memory_width: width of the tokens attended to; None for self-attention.
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
        outputs: OutputTokens | None = None,
        rotations: Rotations | None = None,
    ) -> Float[Array, "r s d"] | Float[Array, "r q d"]:
        """The tokens after all blocks.

        Args:
          rotations: of queries and keys, in every block.
          outputs: the tokens to return; the last block computes no others. None: all.
        """
        graph, parameters = nnx.split(self.blocks)
        key_segments = segments if memory is None else memory[1]

        def block(outputs: OutputTokens | None) -> Callable[..., Any]:
            query_segments = segments if outputs is None else outputs.segment_ids
            block_mask = create_block_mask(query_segments, key_segments, self.head_size, self.implementation)
            inputs = segments, memory, block_mask, outputs, rotations
            return lambda carry, layer: (nnx.merge(graph, layer)(carry, *inputs), None)

        scanned = self.depth if outputs is None else self.depth - 1
        layers = jax.tree.map(lambda stacked: stacked[:scanned], parameters)
        tokens, _ = scan_blocks(block(None), tokens, layers, scanned, self.remat)
        if outputs is not None:
            last = jax.tree.map(lambda stacked: stacked[-1], parameters)
            tokens, _ = rematerialised(block(outputs), self.remat)(tokens, last)
        return self.norm(tokens)

    def with_attention_entropy(
        self, tokens: Float[Array, "r s d"], segments: Int[Array, "r s"], rotations: Rotations | None = None
    ) -> tuple[Float[Array, "r s d"], Float[Array, ""]]:
        """As a call of a self-attending stack, with the mean of `Attention.entropy` over its blocks."""
        graph, parameters = nnx.split(self.blocks)
        block_mask = create_block_mask(segments, segments, self.head_size, self.implementation)

        def step(tokens: Float[Array, "r s d"], layer: Any) -> tuple[Float[Array, "r s d"], Float[Array, ""]]:
            block = nnx.merge(graph, layer)
            entropy = block.attention.entropy(block.attention_norm(tokens), segments, rotations)
            return block(tokens, segments, None, block_mask, None, rotations), entropy

        tokens, entropies = scan_blocks(step, tokens, parameters, self.depth, self.remat)
        return self.norm(tokens), entropies.mean()
