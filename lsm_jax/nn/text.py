"""Transformer stacks over text: causal or bidirectional self-attention, and cross-attention to a window's tokens.

A row is one text, padded at its end with segment 0, which no token attends to. `step` computes one token after those in
a key-value cache, with the same result as for the whole text.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.captions.tokenizer import END, PAD
from lsm_jax.nn.attention import AUTO, BlockMask, attention, create_block_mask
from lsm_jax.nn.layers import Attention, FeedForward, scan_blocks
from lsm_jax.nn.sizes import StackSize

# Of self-attention: texts are short, and only this implementation can be causal.
_IMPLEMENTATION = "reference"

# The tokens that texts cross-attend to, and their segments. If a row serves n texts, they are its segments 1 to n.
Memory = tuple[Float[Array, "r m e"], Int[Array, "r m"]]


class Cache(NamedTuple):
    """Keys and values of every layer for the tokens so far; zeros beyond them."""

    keys: Float[Array, "layers b l h d"]
    values: Float[Array, "layers b l h d"]


class CrossAttentionInputs(NamedTuple):
    """What every layer needs to cross-attend to a memory, computed once.

    Attributes:
      query_segments: the segment of the memory that each text token reads; 0 is padding. The n texts of a row of the
        memory are laid side by side.
      block_mask: of `create_block_mask`.
    """

    memory: Memory
    query_segments: Int[Array, "r n*l"]
    block_mask: BlockMask | None


class TextBlock(nnx.Module):
    """Pre-norm block: self-attention, cross-attention to a memory if there is one, feed-forward."""

    def __init__(
        self,
        size: StackSize,
        memory_width: int | None,
        *,
        cross_attention_impl: str,
        causal: bool,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(size, None, implementation=_IMPLEMENTATION, causal=causal, dtype=dtype, rngs=rngs)
        if memory_width is not None:
            self.memory_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
            self.memory_attention = Attention(
                size, memory_width, implementation=cross_attention_impl, dtype=dtype, rngs=rngs
            )
        self.feed_forward_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(size.width, size.hidden, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b l d"], segments: Int[Array, "b l"], cross: CrossAttentionInputs | None
    ) -> Float[Array, "b l d"]:
        tokens = tokens + self.attention(self.attention_norm(tokens), segments, None, None)
        return self._after_self_attention(tokens, cross)

    def step(
        self, token: Float[Array, "b 1 d"], cache: Cache, position: Int[Array, ""], cross: CrossAttentionInputs | None
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """The token at `position`, after those in this layer's cache, and the cache with it."""
        query, key, value = jnp.moveaxis(self.attention.query_key_value(self.attention_norm(token)), -3, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, key, position, axis=1),
            jax.lax.dynamic_update_slice_in_dim(cache.values, value, position, axis=1),
        )
        query_segments = jnp.ones(token.shape[:2], jnp.int32)
        # Later positions are marked as padding, which has the effect of a causal mask.
        filled = jnp.arange(cache.keys.shape[1]) <= position
        key_segments = jnp.broadcast_to(filled, cache.keys.shape[:2]).astype(jnp.int32)
        attended = attention(query, cache.keys, cache.values, query_segments, key_segments, _IMPLEMENTATION)
        return self._after_self_attention(token + self.attention.output(attended), cross), cache

    def _after_self_attention(
        self, tokens: Float[Array, "b l d"], cross: CrossAttentionInputs | None
    ) -> Float[Array, "b l d"]:
        if cross is not None:
            queries = self.memory_norm(tokens).reshape(*cross.query_segments.shape, -1)
            attended = self.memory_attention(queries, cross.query_segments, cross.memory, cross.block_mask)
            tokens = tokens + attended.reshape(tokens.shape)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class TextStack(nnx.Module):
    """`size.depth` text blocks, scanned, and a final norm.

    Args:
      memory_width: width of the tokens cross-attended to; None: no cross-attention.
      cross_attention_impl: its implementation.
      causal: a token attends to itself and those before it only.
    """

    def __init__(
        self,
        size: StackSize,
        *,
        memory_width: int | None = None,
        cross_attention_impl: str = AUTO,
        causal: bool,
        remat: str,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> TextBlock:
            return TextBlock(
                size, memory_width, cross_attention_impl=cross_attention_impl, causal=causal, dtype=dtype, rngs=rngs
            )

        self.blocks = make(rngs)
        self.norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.size, self.remat, self.dtype, self.cross_attention_impl = size, remat, dtype, cross_attention_impl

    def __call__(
        self, tokens: Float[Array, "b l d"], segments: Int[Array, "b l"], memory: Memory | None = None
    ) -> Float[Array, "b l d"]:
        graph, parameters = nnx.split(self.blocks)
        cross = self._cross_attention_inputs(segments, memory)

        def step(carry: Float[Array, "b l d"], layer: nnx.State) -> tuple[Float[Array, "b l d"], None]:
            return nnx.merge(graph, layer)(carry, segments, cross), None

        tokens, _ = scan_blocks(step, tokens, parameters, self.size.depth, self.remat)
        return self.norm(tokens)

    def step(
        self, token: Float[Array, "b 1 d"], cache: Cache, position: Int[Array, ""], memory: Memory | None = None
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """As `TextBlock.step`, for all layers."""
        graph, parameters = nnx.split(self.blocks)
        cross = self._cross_attention_inputs(jnp.ones(token.shape[:2], jnp.int32), memory)

        def layer(carry: Float[Array, "b 1 d"], inputs: tuple[nnx.State, Cache]) -> tuple[Float[Array, "b 1 d"], Cache]:
            return nnx.merge(graph, inputs[0]).step(carry, inputs[1], position, cross)

        token, cache = jax.lax.scan(layer, token, (parameters, cache))
        return self.norm(token), cache

    def _cross_attention_inputs(
        self, segments: Int[Array, "b l"], memory: Memory | None
    ) -> CrossAttentionInputs | None:
        if memory is None:
            return None
        queries, head_size = query_segment_ids(segments, len(memory[0])), self.size.width // self.size.heads
        block_mask = create_block_mask(queries, memory[1], head_size, self.cross_attention_impl)
        return CrossAttentionInputs(memory, queries, block_mask)

    def empty_cache(self, texts: int, length: int) -> Cache:
        """A cache without tokens."""
        shape = (self.size.depth, texts, length, self.size.heads, self.size.width // self.size.heads)
        return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))


class TextTower(nnx.Module):
    """Token ids to vectors: token and position embeddings, then a stack.

    Args:
      vocabulary: rows of the token embedding.
      length: tokens of the longest text.
    """

    def __init__(
        self, size: StackSize, vocabulary: int, length: int, *, causal: bool, remat: str, dtype: str, rngs: nnx.Rngs
    ) -> None:
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Param(normal(size.width**-0.5)(rngs.params(), (vocabulary, size.width)))
        self.position_embedding = nnx.Param(normal(0.3 * size.width**-0.5)(rngs.params(), (length, size.width)))
        self.stack = TextStack(size, causal=causal, remat=remat, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Vectors of all tokens; those of padding are meaningless, and no token attends to them."""
        vectors = self.token_embedding[...][ids] + self.position_embedding[: ids.shape[1]]
        return self.stack(vectors.astype(self.dtype), text_segments(ids))

    def step(
        self, ids: Int[Array, " b"], cache: Cache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """Vectors of the tokens at `position`, after those in the cache."""
        vectors = self.token_embedding[...][ids] + self.position_embedding[...][position]
        return self.stack.step(vectors[:, None].astype(self.dtype), cache, position)

    def logits(self, vectors: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Logits of the next token, with the token embedding as output weights; float32."""
        table = self.token_embedding[...].astype(vectors.dtype)
        return jnp.einsum("bld,vd->blv", vectors, table, preferred_element_type=jnp.float32)


def text_segments(ids: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """The segments of texts: 1 for tokens, 0 for padding."""
    return (ids != PAD).astype(jnp.int32)


def has_caption(ids: Int[Array, "b l"]) -> Bool[Array, " b"]:
    """Which texts are more than begin and end."""
    return (ids[:, 0] != PAD) & (ids[:, 1] != END)


def query_segment_ids(segments: Int[Array, "b l"], rows: int) -> Int[Array, "r n*l"]:
    """The segment of the memory that each text token reads (see `Memory`), with the texts of a row side by side."""
    window = jnp.arange(1, len(segments) // rows + 1, dtype=jnp.int32)
    return jnp.where(segments.reshape(rows, len(window), -1) > 0, window[:, None], 0).reshape(rows, -1)


def last_token(vectors: Float[Array, "b l d"], ids: Int[Array, "b l"]) -> Float[Array, "b d"]:
    """The vector of each text's last token, or of padding for an empty text."""
    last = jnp.maximum(text_segments(ids).sum(axis=1) - 1, 0)
    return jnp.take_along_axis(vectors, last[:, None, None], axis=1)[:, 0]
