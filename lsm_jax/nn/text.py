"""Text towers: causal or bidirectional self-attention over tokens, and cross-attention to what a window shows.

Rows hold one text each, real tokens first. Padding is segment 0, so no token ever sees it. `step` runs one token
after those already in a cache and gives what the whole text would at its place.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lsm_jax.captions.tokenizer import PAD
from lsm_jax.nn.attention import AUTO, BlockMask, attention, create_block_mask
from lsm_jax.nn.layers import Attention, FeedForward, scan_blocks
from lsm_jax.nn.sizes import StackSize

# Texts are short, and only this one can hide later tokens.
_IMPLEMENTATION = "reference"

# Tokens of what windows show, and their segments. Text i reads segment i % n + 1 of row i // n, with n texts to a row.
Memory = tuple[Float[Array, "r m e"], Int[Array, "r m"]]


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of every layer.

    Attributes:
      keys, values: [layers, B, L, H, D]; zeros beyond the tokens so far.
    """

    keys: Float[Array, "layers b l h d"]
    values: Float[Array, "layers b l h d"]


class _Reading(NamedTuple):
    """A memory and which text reads what of it: made once, given to every layer.

    Attributes:
      asking: texts side by side in the rows of the memory, by the segments they read; 0 is padding.
    """

    memory: Memory
    asking: Int[Array, "r n*l"]
    block_mask: BlockMask | None


class TextBlock(nnx.Module):
    """Pre-norm block: self-attention, cross-attention to a memory where there is one, feed-forward."""

    def __init__(
        self,
        size: StackSize,
        memory_width: int | None,
        *,
        reading: str,
        causal: bool,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.attention = Attention(size, None, implementation=_IMPLEMENTATION, causal=causal, dtype=dtype, rngs=rngs)
        if memory_width is not None:
            self.memory_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
            self.memory_attention = Attention(size, memory_width, implementation=reading, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(size.width, size.hidden, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "b l d"], segments: Int[Array, "b l"], reading: _Reading | None
    ) -> Float[Array, "b l d"]:
        tokens = tokens + self.attention(self.attention_norm(tokens), segments, None, None)
        return self._after_attention(tokens, reading)

    def step(
        self, token: Float[Array, "b 1 d"], cache: Cache, place: Int[Array, ""], reading: _Reading | None
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """The token at `place` after those in this layer's cache, and the cache with it."""
        query, key, value = jnp.moveaxis(self.attention.query_key_value(self.attention_norm(token)), -3, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice_in_dim(cache.keys, key, place, axis=1),
            jax.lax.dynamic_update_slice_in_dim(cache.values, value, place, axis=1),
        )
        here = jnp.ones(token.shape[:2], jnp.int32)
        # Later places are padding, which hides them as causality does.
        known = jnp.broadcast_to(jnp.arange(cache.keys.shape[1]) <= place, cache.keys.shape[:2]).astype(jnp.int32)
        attended = attention(query, cache.keys, cache.values, here, known, _IMPLEMENTATION)
        return self._after_attention(token + self.attention.output(attended), reading), cache

    def _after_attention(self, tokens: Float[Array, "b l d"], reading: _Reading | None) -> Float[Array, "b l d"]:
        if reading is not None:
            asked = self.memory_norm(tokens).reshape(*reading.asking.shape, -1)
            read = self.memory_attention(asked, reading.asking, reading.memory, reading.block_mask)
            tokens = tokens + read.reshape(tokens.shape)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class TextStack(nnx.Module):
    """`size.depth` text blocks, scanned, and a final norm.

    Args:
      memory_width: of the tokens attended to; None where there are none.
      reading: the implementation of attention to them.
      causal: a token sees those before it alone.
    """

    def __init__(
        self,
        size: StackSize,
        *,
        memory_width: int | None = None,
        reading: str = AUTO,
        causal: bool,
        remat: str,
        dtype: str,
        rngs: nnx.Rngs,
    ) -> None:
        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> TextBlock:
            return TextBlock(size, memory_width, reading=reading, causal=causal, dtype=dtype, rngs=rngs)

        self.blocks = make(rngs)
        self.norm = nnx.LayerNorm(size.width, dtype=dtype, rngs=rngs)
        self.size, self.remat, self.dtype, self.reading = size, remat, dtype, reading

    def __call__(
        self, tokens: Float[Array, "b l d"], segments: Int[Array, "b l"], memory: Memory | None = None
    ) -> Float[Array, "b l d"]:
        graph, parameters = nnx.split(self.blocks)
        reading = self._reading(segments, memory)

        def step(carry: Float[Array, "b l d"], layer: nnx.State) -> tuple[Float[Array, "b l d"], None]:
            return nnx.merge(graph, layer)(carry, segments, reading), None

        tokens, _ = scan_blocks(step, tokens, parameters, self.size.depth, self.remat)
        return self.norm(tokens)

    def step(
        self, token: Float[Array, "b 1 d"], cache: Cache, place: Int[Array, ""], memory: Memory | None = None
    ) -> tuple[Float[Array, "b 1 d"], Cache]:
        """As `TextBlock.step`, through all layers."""
        graph, parameters = nnx.split(self.blocks)
        reading = self._reading(jnp.ones(token.shape[:2], jnp.int32), memory)

        def layer(carry: Float[Array, "b 1 d"], inputs: tuple[nnx.State, Cache]) -> tuple[Float[Array, "b 1 d"], Cache]:
            return nnx.merge(graph, inputs[0]).step(carry, inputs[1], place, reading)

        token, cache = jax.lax.scan(layer, token, (parameters, cache))
        return self.norm(token), cache

    def _reading(self, segments: Int[Array, "b l"], memory: Memory | None) -> _Reading | None:
        if memory is None:
            return None
        asking = asking_segments(segments, len(memory[0]))
        head_size = self.size.width // self.size.heads
        return _Reading(memory, asking, create_block_mask(asking, memory[1], head_size, self.reading))

    def empty_cache(self, texts: int, length: int) -> Cache:
        """A cache with no token in it."""
        shape = (self.size.depth, texts, length, self.size.heads, self.size.width // self.size.heads)
        return Cache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))


class TextTower(nnx.Module):
    """Tokens to vectors: a table of tokens, learned places, a stack.

    Args:
      vocabulary: rows of the table.
      length: the longest text, in tokens.
    """

    def __init__(
        self, size: StackSize, vocabulary: int, length: int, *, causal: bool, remat: str, dtype: str, rngs: nnx.Rngs
    ) -> None:
        normal = nnx.initializers.normal
        self.token_table = nnx.Param(normal(size.width**-0.5)(rngs.params(), (vocabulary, size.width)))
        self.place_table = nnx.Param(normal(0.3 * size.width**-0.5)(rngs.params(), (length, size.width)))
        self.stack = TextStack(size, causal=causal, remat=remat, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Vectors of all tokens; those of padding mean nothing and are seen by none."""
        vectors = self.token_table[...][ids] + self.place_table[: ids.shape[1]]
        return self.stack(vectors.astype(self.dtype), real(ids))

    def step(self, ids: Int[Array, " b"], cache: Cache, place: Int[Array, ""]) -> tuple[Float[Array, "b 1 d"], Cache]:
        """The vectors of the tokens at `place`, after those in the cache."""
        vectors = self.token_table[...][ids] + self.place_table[...][place]
        return self.stack.step(vectors[:, None].astype(self.dtype), cache, place)

    def scores(self, vectors: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """How well each token of the vocabulary fits, by the same table the tokens are read with; float32."""
        table = self.token_table[...].astype(vectors.dtype)
        return jnp.einsum("bld,vd->blv", vectors, table, preferred_element_type=jnp.float32)


def real(ids: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """1 for tokens, 0 for padding: the segments of texts."""
    return (ids != PAD).astype(jnp.int32)


def asking_segments(segments: Int[Array, "b l"], rows: int) -> Int[Array, "r n*l"]:
    """Texts side by side in the rows of their windows, each real token by the segment it reads, 0 where padding."""
    which = jnp.arange(1, len(segments) // rows + 1, dtype=jnp.int32)
    return jnp.where(segments.reshape(rows, len(which), -1) > 0, which[:, None], 0).reshape(rows, -1)


def last_real(vectors: Float[Array, "b l d"], ids: Int[Array, "b l"]) -> Float[Array, "b d"]:
    """The vector of each text's last token, its end or where it was cut; of a text without any, of its padding."""
    place = jnp.maximum(real(ids).sum(axis=1) - 1, 0)
    return jnp.take_along_axis(vectors, place[:, None, None], axis=1)[:, 0]
